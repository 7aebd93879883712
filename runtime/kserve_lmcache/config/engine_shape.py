"""What the engine's configuration means for a KV cache outside it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineShape:
    """Sizes that the offloaded KV cache must fit.

    Attributes:
        device: ``cpu``, ``cuda``, …
        workers: engine workers that share this container's memory.
        block_size: tokens of one block of vLLM's paged KV cache.
        kv_bytes_per_token: bytes of one token's KV in one worker.
        max_model_len: tokens of the longest request.
        max_num_seqs: requests that may run at a time.
    """

    device: str
    workers: int
    block_size: int
    kv_bytes_per_token: int
    max_model_len: int
    max_num_seqs: int

    @property
    def request_bytes(self) -> int:
        """Bytes of the longest request's KV in one worker."""
        return self.kv_bytes_per_token * self.max_model_len

    def holds(self, size: float) -> str:
        """What a token takes, and what ``size`` bytes of one worker's local tier hold."""
        each = f" in each of {self.workers} workers" if self.workers > 1 else ""
        return (
            f"The KV of one token is {self.kv_bytes_per_token} bytes{each}: the local tier holds "
            f"{int(size / self.kv_bytes_per_token)} tokens, and a request has up to "
            f"{self.max_model_len}"
        )


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
