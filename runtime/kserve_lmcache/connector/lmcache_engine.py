"""The only place that touches LMCache's internals (0.5.1 to 0.5.6).

``tests/integration/test_lmcache_contract.py`` fails when an upgrade changes one of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmcache.integration.vllm.utils import ENGINE_NAME, lmcache_get_or_create_config
from lmcache.integration.vllm.vllm_service_factory import VllmServiceFactory
from lmcache.v1.cache_engine import LMCacheEngineBuilder

from kserve_lmcache.connector.cpu_copy import CPUPagedMemoryConnector

if TYPE_CHECKING:
    from lmcache.integration.vllm.vllm_v1_adapter import LMCacheConnectorV1Impl
    from vllm.config import VllmConfig


def create_on_cpu(vllm_config: VllmConfig) -> None:
    """Create this worker's LMCache engine with our copy path for the CPU.

    LMCache's factory takes the engine that is already there under its name; its own dispatch
    has no connector for a CPU and would turn caching off.

    Raises:
        NotImplementedError: the model or the configuration needs a copy that we do not have.
    """
    from vllm.distributed.parallel_state import get_tp_group

    config = lmcache_get_or_create_config()
    metadata = VllmServiceFactory(config, vllm_config, "worker").get_or_create_metadata()
    group = get_tp_group()
    LMCacheEngineBuilder.get_or_create(
        ENGINE_NAME,
        config,
        metadata,
        CPUPagedMemoryConnector.from_metadata(config, metadata),
        group.broadcast,
        group.broadcast_object,
    )


def failure(adapter: LMCacheConnectorV1Impl) -> str:
    """Why LMCache does not work in this process; empty when it does."""
    manager = adapter._manager
    if manager._init_failed:
        return _last_line(manager._init_failed_reason)
    if manager.lmcache_engine is None:
        return "LMCache created no cache engine"
    if not manager.lmcache_engine.is_healthy():
        return "LMCache's cache engine reports that it is not healthy"
    return ""


def effective_config(adapter: LMCacheConnectorV1Impl) -> dict[str, Any]:
    """The configuration that LMCache uses, key by key."""
    return dict(adapter.config.to_dict())


def _last_line(text: str) -> str:
    """The exception itself, out of a formatted traceback."""
    lines = [line for line in text.strip().splitlines() if line and not line.startswith(" ")]
    return lines[-1] if lines else "unknown"
