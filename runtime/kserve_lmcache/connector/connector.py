"""The façade over LMCache's in-process connector."""

from __future__ import annotations

import copy
import traceback
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.lmcache_connector import LMCacheConnectorV1
from vllm.logger import init_logger

from kserve_lmcache.config import engine_file
from kserve_lmcache.connector import lmcache_engine
from kserve_lmcache.connector.isolation import Isolation
from kserve_lmcache.identity.namespace import NAMESPACE

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

logger = init_logger(__name__)


class KServeLMCacheConnector(LMCacheConnectorV1):  # type: ignore[misc]
    """vLLM's LMCache connector that works on a CPU too, and says when it does not work.

    Whatever route a request came by, it passes here: what makes a hit right beside its tokens is
    put into the keys here (the model's namespace, and :mod:`.isolation`).

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
        self._excluded: set[str] = set()
        try:
            named = _named(vllm_config)
            if role == KVConnectorRole.WORKER and vllm_config.device_config.device_type == "cpu":
                lmcache_engine.create_on_cpu(named)
            super().__init__(named, role, kv_cache_config)
            self._isolation = Isolation(
                tags_reach_keys=not lmcache_engine.effective_config(self._lmcache_engine)[
                    "use_layerwise"
                ]
            )
        except Exception as error:
            self._fail(error)
        if role == KVConnectorRole.SCHEDULER and (failure := self._scheduler_failure()):
            engine_file.leave_scheduler_failure(failure)

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Give LMCache the paged KV cache: one tensor a layer, by the layer's name."""
        if self._failure:
            return
        try:
            lmcache_engine.check_on_cpu(self._lmcache_engine, list(kv_caches.values()))
            super().register_kv_caches(kv_caches)
        except Exception as error:
            self._fail(error)

    def shutdown(self) -> None:
        """Flush and stop LMCache; its threads would keep the process from exiting."""
        if not self._failure:
            lmcache_engine.stop(self._lmcache_engine)

    def on_new_request(self, request: Request) -> None:
        """The scheduler meets a request, by whatever route it came."""
        self._isolate(request)

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """How many more tokens than vLLM's own cache has can be loaded, and never later."""
        self._isolate(request)  # vLLM 0.24 does not call on_new_request
        # Prompt logprobs and some poolings need every position computed: vLLM does not read its
        # own cache for them, and returns whatever lies in memory for positions that it loaded.
        if request.request_id in self._excluded or request.skip_reading_prefix_cache:
            lmcache_engine.load_nothing(
                self._lmcache_engine, request.request_id, num_computed_tokens
            )
            return 0, False
        matched: tuple[int | None, bool] = super().get_num_new_matched_tokens(
            request, num_computed_tokens
        )
        if matched[0] == 0:
            lmcache_engine.leave_unloaded(
                self._lmcache_engine, request.request_id, num_computed_tokens
            )
        return matched

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        """What the workers have to load and to save in this step."""
        meta = super().build_connector_meta(scheduler_output)
        if self._excluded:
            meta.requests = [each for each in meta.requests if each.req_id not in self._excluded]
        return meta

    def request_finished(
        self, request: Request, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Forget a request."""
        finished: tuple[bool, dict[str, Any] | None] = super().request_finished(request, block_ids)
        self._excluded.discard(request.request_id)
        return finished

    def _isolate(self, request: Request) -> None:
        if not self._isolation.mark(request):
            self._excluded.add(request.request_id)

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


def _named(vllm_config: VllmConfig) -> VllmConfig:
    """The configuration with the namespace for the model's name, which LMCache puts into keys.

    Raises:
        KeyError: the server left no namespace; the path alone would mix up models.
    """
    named = copy.copy(vllm_config)
    named.model_config = copy.copy(vllm_config.model_config)
    named.model_config.model = vllm_config.kv_transfer_config.kv_connector_extra_config[NAMESPACE]
    return named
