"""Internals of LMCache's engine that a copy path of ours needs (LMCache 0.5.1 to 0.5.6).

``tests/integration/test_lmcache_contract.py`` fails when an upgrade changes one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from lmcache.integration.vllm.utils import ENGINE_NAME, lmcache_get_or_create_config
from lmcache.integration.vllm.vllm_service_factory import VllmServiceFactory
from lmcache.v1.cache_engine import LMCacheEngineBuilder
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.metadata import LMCacheMetadata

if TYPE_CHECKING:
    from lmcache.integration.vllm.vllm_v1_adapter import LMCacheConnectorV1Impl
    from lmcache.v1.gpu_connector.gpu_connectors import GPUConnectorInterface
    from lmcache.v1.memory_management import MemoryObj
    from vllm.config import VllmConfig


def create_engine(
    vllm_config: VllmConfig, copy_path: GPUConnectorInterface, bytes_per_token: int
) -> None:
    """Create this worker's LMCache engine with a copy path of the caller's.

    LMCache's factory takes the engine that exists under its name.

    Args:
        vllm_config: the engine's.
        copy_path: copies to and from memory objects of opaque bytes.
        bytes_per_token: of this worker, in all layers.
    """
    from vllm.distributed.parallel_state import get_tp_group

    config = lmcache_get_or_create_config()
    metadata = VllmServiceFactory(config, vllm_config, "worker").get_or_create_metadata()
    describe_bytes(metadata, bytes_per_token)
    group = get_tp_group()
    LMCacheEngineBuilder.get_or_create(
        ENGINE_NAME, config, metadata, copy_path, group.broadcast, group.broadcast_object
    )


def describe_bytes(metadata: LMCacheMetadata, bytes_per_token: int) -> None:
    """Make memory objects ``[1, 1, tokens, bytes_per_token]`` of ``uint8``.

    LMCache then takes no part in what the bytes mean. It would store the KV of the first worker
    alone for a model with MLA, and broadcast it when it loads: each worker stores its own.
    """
    metadata.kv_shape = (1, 1, metadata.chunk_size, 1, bytes_per_token)
    metadata.kv_dtype = torch.uint8
    metadata.use_mla = False


def ask_every_worker(vllm_config: VllmConfig) -> None:
    """Make the scheduler ask all workers what they have, and not the first alone (MLA)."""
    config = lmcache_get_or_create_config()
    config.lookup_server_worker_ids = list(range(vllm_config.parallel_config.world_size))


def copy_path(adapter: LMCacheConnectorV1Impl) -> GPUConnectorInterface | None:
    """The copy path of this worker's engine; ``None`` without an engine."""
    engine = adapter.lmcache_engine
    return None if engine is None else engine.gpu_connector


def name_keys(adapter: LMCacheConnectorV1Impl, suffix: str) -> None:
    """Append ``suffix`` to the model's name in all keys that this worker makes from now on.

    The scheduler sends hashes of tokens; the workers make the keys.
    """
    metadata = adapter.lmcache_engine.metadata
    metadata.model_name = f"{metadata.model_name}-{suffix}"


def allocate(adapter: LMCacheConnectorV1Impl, tokens: int) -> MemoryObj | None:
    """A memory object of this worker's local CPU tier, in no key; ``None`` without room.

    The caller gives it back by ``ref_count_down``.
    """
    engine = adapter.lmcache_engine
    found: Any = engine.storage_manager.allocate(
        engine.metadata.get_shapes(tokens),
        engine.metadata.get_dtypes(),
        busy_loop=False,
        fmt=engine.fmt,
    )
    return found


@contextmanager
def trial(
    copy_path: GPUConnectorInterface, bytes_per_token: int, tokens: int
) -> Iterator[LMCacheConnectorV1Impl]:
    """An LMCache engine without vLLM for a while, in place of a worker's adapter.

    Args:
        copy_path: copies to and from memory objects of opaque bytes.
        bytes_per_token: of all layers.
        tokens: of a chunk.
    """
    name, size = "trial", 64 * tokens * bytes_per_token / 2**30
    config = LMCacheEngineConfig.from_defaults(chunk_size=tokens, max_local_cpu_size=size)
    metadata = LMCacheMetadata(
        model_name=name,
        world_size=1,
        local_world_size=1,
        worker_id=0,
        local_worker_id=0,
        kv_dtype=torch.uint8,
        kv_shape=(1, 1, tokens, 1, bytes_per_token),
        chunk_size=tokens,
    )
    engine = LMCacheEngineBuilder.get_or_create(
        name, config, metadata, copy_path, lambda tensor, source: None, lambda value, source: value
    )
    try:
        engine.post_init()
        yield SimpleNamespace(lmcache_engine=engine, config=config)
    finally:
        LMCacheEngineBuilder.destroy(name)
