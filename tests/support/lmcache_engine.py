"""LMCache's engine of one worker, without vLLM and without a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lmcache.v1.cache_engine import LMCacheEngine, LMCacheEngineBuilder
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.metadata import LMCacheMetadata

from kserve_lmcache.compat.lmcache.copy_path import describe_bytes
from kserve_lmcache.connector.copy.pages import Page, Pages
from kserve_lmcache.connector.inprocess.block_connector import BlockConnector

# Of its KV cache.
LAYERS, HEADS, HEAD_SIZE, CHUNK, BLOCK, BLOCKS = 2, 3, 8, 16, 4, 83
NAMES = [f"layer {number}" for number in range(LAYERS)]
PAGES = Pages(BLOCKS, dict.fromkeys(NAMES, Page(BLOCK, HEADS * BLOCK * 2 * HEAD_SIZE * 4, HEADS)))


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
    copies = BlockConnector(PAGES, CHUNK)
    metadata = metadata_of(torch.float32, (LAYERS, 2, CHUNK, HEADS, HEAD_SIZE))
    describe_bytes(metadata, copies.bytes_per_token)
    engine = LMCacheEngineBuilder.get_or_create(
        name,
        config,
        metadata,
        copies,
        lambda tensor, source: None,
        lambda value, source: value,
    )
    engine.post_init()
    try:
        yield engine
    finally:
        LMCacheEngineBuilder.destroy(name)


def use(engine: LMCacheEngine, cache: list[torch.Tensor]) -> None:
    """Let the engine copy from and to this KV cache, of a tensor a layer, from now on."""
    engine.gpu_connector.register(dict(zip(NAMES, cache, strict=True)))
