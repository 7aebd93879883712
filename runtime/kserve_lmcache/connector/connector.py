"""The façade over LMCache's in-process connector."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.lmcache_connector import LMCacheConnectorV1
from vllm.logger import init_logger

from kserve_lmcache.config import engine_file
from kserve_lmcache.connector import lmcache_engine

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

logger = init_logger(__name__)


class KServeLMCacheConnector(LMCacheConnectorV1):  # type: ignore[misc]
    """vLLM's LMCache connector that works on a CPU too, and says when it does not work.

    A process whose LMCache failed survives until the server has read the reason
    (:mod:`.report`); the server then ends the engine, so no request ever meets it.
    """

    def __init__(
        self,
        vllm_config: VllmConfig,
        role: KVConnectorRole,
        kv_cache_config: KVCacheConfig,
    ) -> None:
        self._failure = ""
        try:
            if role == KVConnectorRole.WORKER and vllm_config.device_config.device_type == "cpu":
                lmcache_engine.create_on_cpu(vllm_config)
            super().__init__(vllm_config, role, kv_cache_config)
        except Exception as error:
            self._fail(error)
        if role == KVConnectorRole.SCHEDULER and (failure := self._scheduler_failure()):
            engine_file.leave_scheduler_failure(failure)

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Give LMCache the paged KV cache: one tensor a layer, by the layer's name."""
        if self._failure:
            return
        try:
            super().register_kv_caches(kv_caches)
        except Exception as error:
            self._fail(error)

    def shutdown(self) -> None:
        """Flush and stop LMCache; its threads would keep the process from exiting."""
        if not self._failure:
            lmcache_engine.stop(self._lmcache_engine)

    def report(self) -> dict[str, Any]:
        """State of this worker's LMCache: ``failure`` (empty when it works) and ``config``."""
        if self._failure:
            return {"failure": self._failure, "config": {}}
        return {
            "failure": lmcache_engine.failure(self._lmcache_engine),
            "config": lmcache_engine.effective_config(self._lmcache_engine),
        }

    def _scheduler_failure(self) -> str:
        return self._failure or lmcache_engine.scheduler_failure(self._lmcache_engine)

    def _fail(self, error: Exception) -> None:
        self._failure = f"{type(error).__name__}: {error}"
        logger.error("LMCache did not start:\n%s", "".join(traceback.format_exception(error)))
