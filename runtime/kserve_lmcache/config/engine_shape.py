"""The sizes of an engine's KV cache, which decide the sizes of the tiers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineShape:
    """The sizes of an engine's KV cache.

    Attributes:
        device: the device on which the engine computes: ``cpu``, ``cuda``, …
        workers: the workers of the engine that share this container's memory.
        block_size: the tokens of one block of vLLM's paged KV cache.
        kv_bytes_per_token: the bytes of one token's KV in one worker.
        max_model_len: the tokens of the longest request.
        max_num_seqs: the largest number of requests that run at a time.
    """

    device: str
    workers: int
    block_size: int
    kv_bytes_per_token: int
    max_model_len: int
    max_num_seqs: int

    @property
    def request_bytes(self) -> int:
        """The bytes of the longest request's KV in one worker."""
        return self.kv_bytes_per_token * self.max_model_len

    def capacity_note(self, size: float) -> str:
        """A sentence about the tokens that a local tier of ``size`` bytes a worker holds."""
        each = f" in each of {self.workers} workers" if self.workers > 1 else ""
        return (
            f"The KV of one token is {self.kv_bytes_per_token} bytes{each}: the local tier holds "
            f"{int(size / self.kv_bytes_per_token)} tokens, and a request has up to "
            f"{self.max_model_len}"
        )


def bytes_per_token(
    layers: int, kv_heads: int, head_size: int, element_bytes: int, latent: bool = False
) -> int:
    """The bytes of one token's KV in the given layers and heads.

    Args:
        layers: the number of layers that have a KV cache.
        kv_heads: the number of KV heads of a layer. Grouped-query attention has fewer KV heads
            than heads.
        head_size: the elements of one head, or of the latent vector.
        element_bytes: the bytes of one element: 2 for bfloat16, 1 for FP8.
        latent: whether one latent vector stands for K and V (multi-head latent attention).
    """
    tensors = 1 if latent else 2  # K and V
    return tensors * layers * kv_heads * head_size * element_bytes
