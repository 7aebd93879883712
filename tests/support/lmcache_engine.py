"""LMCache's engine of one worker, without vLLM and without a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lmcache.v1.cache_engine import LMCacheEngine, LMCacheEngineBuilder
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.metadata import LMCacheMetadata

from kserve_lmcache.connector.cpu_copy import CPUPagedMemoryConnector

# Of its KV cache.
LAYERS, HEADS, HEAD_SIZE, CHUNK, BLOCK = 2, 3, 8, 16, 4


def metadata_of(dtype: torch.dtype, shape: tuple[int, int, int, int, int]) -> LMCacheMetadata:
    """A worker whose chunks are of that shape: layers, 2, tokens, heads, head size."""
    return LMCacheMetadata(
        model_name="model",
        world_size=1,
        local_world_size=1,
        worker_id=0,
        local_worker_id=0,
        kv_dtype=dtype,
        kv_shape=shape,
        chunk_size=shape[2],
    )


@contextmanager
def an_engine(name: str, **settings: Any) -> Iterator[LMCacheEngine]:
    """An engine with our copy, for a while; LMCache knows it by ``name``."""
    config = LMCacheEngineConfig.from_defaults(
        chunk_size=CHUNK, **{"max_local_cpu_size": 0.05, **settings}
    )
    metadata = metadata_of(torch.float32, (LAYERS, 2, CHUNK, HEADS, HEAD_SIZE))
    engine = LMCacheEngineBuilder.get_or_create(
        name,
        config,
        metadata,
        CPUPagedMemoryConnector.from_metadata(config, metadata),
        lambda tensor, source: None,
        lambda value, source: value,
    )
    engine.post_init()
    try:
        yield engine
    finally:
        LMCacheEngineBuilder.destroy(name)
