"""Makes the cache of the mode that the configuration asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kserve_lmcache.config.engine_file import MODE
from kserve_lmcache.config.settings import MULTIPROCESS

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

    from kserve_lmcache.connector.caches import SchedulerCache, WorkerCache

# The modules of a mode are imported in this mode alone: LMCache's cache engine takes memory, and
# time to import.


def scheduler_cache(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> SchedulerCache:
    """The cache in the scheduler's process.

    Raises:
        NotImplementedError: the cache does not support the engine.
        Exception: the cache cannot start.
    """
    if _is_multiprocess(vllm_config):
        from kserve_lmcache.connector.multiprocess.scheduler_cache import MultiprocessSchedulerCache

        return MultiprocessSchedulerCache(vllm_config, kv_cache_config)
    from kserve_lmcache.connector.inprocess.scheduler_cache import InProcessSchedulerCache

    return InProcessSchedulerCache(vllm_config, kv_cache_config)


def worker_cache(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> WorkerCache:
    """The cache in a worker's process. Raises what :func:`scheduler_cache` does."""
    if _is_multiprocess(vllm_config):
        from kserve_lmcache.connector.multiprocess.worker_cache import MultiprocessWorkerCache

        return MultiprocessWorkerCache(vllm_config, kv_cache_config)
    from kserve_lmcache.connector.inprocess.worker_cache import InProcessWorkerCache

    return InProcessWorkerCache(vllm_config, kv_cache_config)


def _is_multiprocess(vllm_config: VllmConfig) -> bool:
    extra_config = vllm_config.kv_transfer_config.kv_connector_extra_config
    return bool(extra_config.get(MODE) == MULTIPROCESS)
