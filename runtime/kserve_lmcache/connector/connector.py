"""The façade over LMCache's in-process connector."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole

from kserve_lmcache.config import engine_file
from kserve_lmcache.connector import lmcache_engine
from kserve_lmcache.connector.cpu_affinity import every_core
from kserve_lmcache.connector.error_containment import contain_inherited, contained
from kserve_lmcache.connector.isolation import Isolation
from kserve_lmcache.connector.kv_groups import check_groups
from kserve_lmcache.connector.load_results import LoadResults
from kserve_lmcache.connector.pending_loads import PendingLoads
from kserve_lmcache.connector.scheduler import SchedulerSide
from kserve_lmcache.connector.token_metrics import TokenMetrics
from kserve_lmcache.connector.traces import Traces
from kserve_lmcache.connector.worker import WorkerSide
from kserve_lmcache.identity.namespace import NAMESPACE
from kserve_lmcache.metrics import start_up_timing
from kserve_lmcache.tiers.guard.load_cost import PrefillRate

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

# Calls that are LMCache's or vLLM's own business, and what vLLM goes on with when they fail.
_ANSWERS: dict[str, Any] = {
    "role": None,
    "prefer_cross_layer_blocks": False,
    "requires_kv_delivery": False,
    "supports_divergent_local_hybrid_hits": False,
    "bind_gpu_block_pool": None,
    "build_connector_worker_meta": None,
    "build_kv_connector_stats": None,
    "build_prom_metrics": None,
    "get_required_kvcache_layout": None,
    "requires_piecewise_for_cudagraph": False,
    "register_cross_layers_kv_cache": None,
    "set_host_xfer_buffer_ops": None,
    "get_finished_count": None,
    "get_handshake_metadata": None,
    "get_kv_connector_kv_cache_events": None,
    "get_kv_connector_stats": None,
    "has_pending_push_work": False,
    "reset_cache": None,
    "set_xfer_handshake_metadata": None,
    "set_xfer_handshake_metadata_pp_aware": None,
}


@contain_inherited(_ANSWERS)
class KServeLMCacheConnector(SchedulerSide, WorkerSide):
    """vLLM's LMCache connector that works on a CPU too, and says when it does not work.

    Whatever route a request came by, it passes here: what makes a hit right beside its tokens is
    put into the keys here (the model's namespace, and :mod:`.isolation`).

    Requests wait for what is loaded for them (:mod:`.promises` in the scheduler, :mod:`.loads` in
    the workers, :mod:`.step` between them): they are computed, and shared with others, on what
    is there. vLLM's connector loads in the step that computes them, and repairs afterwards.

    Nothing that LMCache raises reaches vLLM (:mod:`.faults`). What was promised is settled in
    its step whatever happens: loaded, or reported for vLLM to compute. A request whose books
    LMCache may have left half-written is hidden from it.

    A process whose LMCache did not start survives until the server has read the reason
    (:mod:`.report`); the server then ends the engine.
    """

    def __init__(
        self,
        vllm_config: VllmConfig,
        role: KVConnectorRole,
        kv_cache_config: KVCacheConfig,
    ) -> None:
        if role == KVConnectorRole.WORKER:
            start_up_timing.reached(
                start_up_timing.LOADED
            )  # vLLM makes it when it knows how large a cache fits
        self.failure = ""
        self._device = vllm_config.device_config.device_type
        self._block_size = vllm_config.cache_config.block_size
        self._prefix = {}
        self._excluded = set()
        self._dropped = set()
        self._traces = Traces()
        self._promises = PendingLoads(self._block_size)
        self._loads = LoadResults()
        self._prefill = PrefillRate()
        self._tiers = {}
        self._accounts = TokenMetrics({}, 0, False, self._prefill)
        try:
            check_groups(kv_cache_config)
            named = _named(vllm_config)
            with every_core(self._device):
                if role == KVConnectorRole.WORKER and self._device == "cpu":
                    lmcache_engine.create_on_cpu(named)
                super().__init__(named, role, kv_cache_config)
            config = lmcache_engine.effective_config(self._lmcache_engine)
            if config["enable_blending"]:
                raise NotImplementedError("enable_blending is set: it loads what is not exact")
            self._isolation = Isolation(tags_reach_keys=not config["use_layerwise"])
        except Exception as error:
            self._fail("__init__", error)
            KVConnectorBase_V1.__init__(self, vllm_config, role, kv_cache_config)
        if role == KVConnectorRole.SCHEDULER and (failure := self._scheduler_failure()):
            engine_file.leave_scheduler_failure(failure)

    @contained(lambda self: None)
    def shutdown(self) -> None:
        """Flush and stop LMCache; its threads would keep the process from exiting."""
        lmcache_engine.stop(self._lmcache_engine)

    def report(self) -> dict[str, Any]:
        """State of this worker's LMCache.

        ``failure`` (empty when it works), ``config``, ``faults`` (exceptions by call),
        ``tiers`` (reports of ours, by name: ``disk``, ``remote``), and ``moments`` of its start.
        """
        report: dict[str, Any] = {
            "failure": self.failure,
            "config": {},
            "faults": self.faults.counts(),
            "tiers": {name: tier.report() for name, tier in self._tiers.items()},
            "moments": start_up_timing.moments(),
        }
        if not self.failure:
            report["failure"] = lmcache_engine.failure(self._lmcache_engine)
            report["config"] = lmcache_engine.effective_config(self._lmcache_engine)
        return report

    def _scheduler_failure(self) -> str:
        return self.failure or lmcache_engine.scheduler_failure(self._lmcache_engine)


def _named(vllm_config: VllmConfig) -> VllmConfig:
    """The configuration with the namespace for the model's name, which LMCache puts into keys.

    Raises:
        KeyError: the server left no namespace; the path alone would mix up models.
    """
    named = copy.copy(vllm_config)
    named.model_config = copy.copy(vllm_config.model_config)
    named.model_config.model = vllm_config.kv_transfer_config.kv_connector_extra_config[NAMESPACE]
    return named
