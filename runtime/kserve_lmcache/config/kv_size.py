"""How large the KV cache of one token is."""

from __future__ import annotations


def bytes_per_token(
    layers: int, kv_heads: int, head_size: int, element_bytes: int, latent: bool = False
) -> int:
    """Bytes of one token's KV, over the layers and heads given.

    Args:
        layers: that have a KV cache.
        kv_heads: of a layer; with grouped queries fewer than there are heads.
        head_size: elements of a head; of a latent vector, its length.
        element_bytes: of the KV cache's data type: 2 for bfloat16, 1 for FP8.
        latent: whether one latent vector stands for K and V (multi-head latent attention).
    """
    tensors = 1 if latent else 2  # K and V
    return tensors * layers * kv_heads * head_size * element_bytes
