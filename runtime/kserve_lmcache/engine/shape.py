"""Reads the sizes of an engine's KV cache from vLLM's configuration."""

from __future__ import annotations

from vllm.config import VllmConfig
from vllm.utils.torch_utils import get_kv_cache_torch_dtype

from kserve_lmcache.config.engine_shape import EngineShape, bytes_per_token


def shape_of(config: VllmConfig) -> EngineShape:
    """The sizes of the KV cache of an engine, which need not run yet."""
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
