"""What the engine's configuration means for a KV cache outside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kserve_lmcache.kv_size import bytes_per_token

if TYPE_CHECKING:
    from vllm.config import VllmConfig


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


def shape_of(config: VllmConfig) -> EngineShape:
    """The shape of an engine that is configured and need not run yet."""
    from vllm.utils.torch_utils import get_kv_cache_torch_dtype

    model, parallel = config.model_config, config.parallel_config
    dtype = get_kv_cache_torch_dtype(config.cache_config.cache_dtype, model.dtype)
    token = bytes_per_token(
        layers=model.get_num_layers(parallel),
        kv_heads=model.get_num_kv_heads(parallel),
        head_size=model.get_head_size(),
        element_bytes=dtype.itemsize,
        latent=model.use_mla,
    )
    return EngineShape(
        device=str(config.device_config.device_type),
        workers=parallel.world_size,
        block_size=config.cache_config.block_size,
        kv_bytes_per_token=token,
        max_model_len=model.max_model_len,
        max_num_seqs=config.scheduler_config.max_num_seqs,
    )
