"""The façade over LMCache's in-process connector."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.lmcache_connector import LMCacheConnectorV1
from vllm.logger import init_logger

from kserve_lmcache.config import engine_file
from kserve_lmcache.connector import lmcache_engine
from kserve_lmcache.connector.faults import Faults, contain_inherited, contained
from kserve_lmcache.connector.isolation import Isolation
from kserve_lmcache.connector.loads import Loads
from kserve_lmcache.connector.promises import Promises
from kserve_lmcache.connector.step import Load, Step, without
from kserve_lmcache.identity.namespace import NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from vllm.config import VllmConfig
    from vllm.distributed.kv_events import KVCacheEvent
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

logger = init_logger(__name__)

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
class KServeLMCacheConnector(LMCacheConnectorV1):  # type: ignore[misc]
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

    Attributes:
        faults: of this process, in which vLLM builds one connector.
        failure: why LMCache did not start; empty when it did.
    """

    faults: ClassVar[Faults] = Faults()

    def __init__(
        self,
        vllm_config: VllmConfig,
        role: KVConnectorRole,
        kv_cache_config: KVCacheConfig,
    ) -> None:
        self.failure = ""
        self._block_size = vllm_config.cache_config.block_size
        self._excluded: set[str] = set()
        self._dropped: set[str] = set()
        self._promises = Promises(self._block_size)
        self._loads = Loads()
        try:
            named = _named(vllm_config)
            if role == KVConnectorRole.WORKER and vllm_config.device_config.device_type == "cpu":
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

    # In the scheduler's process.

    @contained(lambda self, request: self._exclude(request.request_id))
    def on_new_request(self, request: Request) -> None:
        """The scheduler meets a request, by whatever route it came."""
        self._isolate(request)
        super().on_new_request(request)

    @contained(lambda self, request, num_computed_tokens: self._no_match(request))
    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """How many more tokens than vLLM's own cache has can be loaded, and that it has to wait.

        ``None`` lets vLLM ask again in the next step.
        """
        self._isolate(request)  # on_new_request may have failed
        if self._promises.must_wait(request):
            return None, False
        name = request.request_id
        if name in self._excluded:
            return 0, False
        # Prompt logprobs and some poolings need every position computed: vLLM does not read its
        # own cache for them, and returns whatever lies in memory for positions that it loaded.
        if request.skip_reading_prefix_cache or self._promises.broke(name):
            lmcache_engine.expect(self._lmcache_engine, name, num_computed_tokens, cached_tokens=0)
            return 0, False
        found, _ = super().get_num_new_matched_tokens(request, num_computed_tokens)
        if found == 0:
            lmcache_engine.leave_unloaded(self._lmcache_engine, name, num_computed_tokens)
        if not found:
            return found, False
        if not self._promises.offer(request, num_computed_tokens):
            return None, False
        return found, True

    @contained(lambda self, request, *_: self._exclude(request.request_id))
    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        """A request got blocks: to load into and wait, and later to be computed."""
        table, load = blocks.get_block_ids()[0], None
        if num_external_tokens > 0:
            load = self._promises.make(request, table, num_external_tokens)
        else:
            self._promises.computed(request.request_id)
        if request.request_id in self._excluded:
            return
        computed = request.num_computed_tokens
        if computed and self._promises.broke(request.request_id):
            lmcache_engine.expect(
                self._lmcache_engine, request.request_id, computed, cached_tokens=computed
            )
        super().update_state_after_alloc(request, blocks, num_external_tokens)
        if load is not None:
            load.source = lmcache_engine.source(self._lmcache_engine, request, table)

    @contained(lambda self, scheduler_output: self._lose_step(scheduler_output))
    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> Step:
        """What the workers have to load and to save in this step."""
        visible = without(scheduler_output, self._excluded)
        return self._next_step(super().build_connector_meta(visible))

    @contained(lambda self, connector_output: None)
    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        """What became of a step in the workers."""
        self._promises.settle(
            connector_output.finished_recving or (), connector_output.invalid_block_ids
        )
        super().update_connector_output(connector_output)

    @contained(lambda self, request, block_ids: self._forget(request) or (False, None))
    def request_finished(
        self, request: Request, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Forget a request."""
        finished: tuple[bool, dict[str, Any] | None] = super().request_finished(request, block_ids)
        self._forget(request)
        return finished

    @contained(lambda self: ())
    def take_events(self) -> Iterable[KVCacheEvent]:
        """What LMCache has stored since the last call."""
        return list(super().take_events())

    def _isolate(self, request: Request) -> None:
        if not self._isolation.mark(request):
            self._exclude(request.request_id)

    def _exclude(self, request_id: str) -> None:
        """Hide a request from LMCache for the rest of its life."""
        if request_id not in self._excluded:
            self._excluded.add(request_id)
            self._dropped.add(request_id)

    def _no_match(self, request: Request) -> tuple[int, bool]:
        self._exclude(request.request_id)
        return 0, False

    def _next_step(self, lmcache: Any) -> Step:
        dropped, self._dropped = self._dropped, set()
        return Step(lmcache, self._promises.take(), dropped)

    def _lose_step(self, scheduler_output: SchedulerOutput) -> Step:
        """LMCache may have the books of any request of the step wrong now."""
        for request_id in scheduler_output.num_scheduled_tokens:
            self._exclude(request_id)
        for request_id in scheduler_output.finished_req_ids:
            self._forget_in_lmcache(request_id)
        return self._next_step(None)

    def _forget(self, request: Request) -> None:
        if request.request_id in self._excluded:
            self._forget_in_lmcache(request.request_id)
        self._excluded.discard(request.request_id)
        self._promises.forget(request.request_id)

    @contained(lambda self, request_id: None)
    def _forget_in_lmcache(self, request_id: str) -> None:
        lmcache_engine.forget(self._lmcache_engine, request_id)

    # In a worker's process.

    @contained(lambda self, kv_caches: None)
    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Give LMCache the paged KV cache: one tensor a layer, by the layer's name."""
        try:
            super().register_kv_caches(kv_caches)
            lmcache_engine.check_on_cpu(self._lmcache_engine, list(kv_caches.values()))
            lmcache_engine.never_wait(self._lmcache_engine)
            lmcache_engine.answer_lookups(self._lmcache_engine, self._record)
        except Exception as error:
            self._fail("register_kv_caches", error)

    @contained(lambda self, kv_connector_metadata: None)
    def handle_preemptions(self, kv_connector_metadata: Step) -> None:
        """Blocks are about to be overwritten."""
        if kv_connector_metadata.lmcache is not None:
            super().handle_preemptions(kv_connector_metadata.lmcache)

    @contained(lambda self, connector_metadata: self._skip(connector_metadata))
    def bind_connector_metadata(self, connector_metadata: Step) -> None:
        """A step begins."""
        self._loads.begin(connector_metadata)
        super().bind_connector_metadata(connector_metadata.lmcache)

    @contained(lambda self: self._save_nothing() or False)
    def has_connector_metadata(self) -> bool:
        """Whether LMCache takes part in this step."""
        return bool(super().has_connector_metadata())

    @contained(lambda self, forward_context, **_: None)
    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Load all that this step has to; what is not loaded then is reported."""
        for load in self._loads.all:
            self._load(load)
        self._release(self._loads.dropped)
        if self._connector_metadata is not None:
            super().start_load_kv(forward_context, **kwargs)

    @contained(lambda self, layer_name: None)
    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing is loaded layer by layer."""
        super().wait_for_layer_load(layer_name)

    @contained(lambda self, *_, **__: self._save_nothing())
    def save_kv_layer(
        self,
        layer_name: str,
        kv_layer: torch.Tensor,
        attn_metadata: AttentionMetadata,
        **kwargs: Any,
    ) -> None:
        """Begin to save a layer."""
        super().save_kv_layer(layer_name, kv_layer, attn_metadata, **kwargs)

    @contained(lambda self: self._save_nothing())
    def wait_for_save(self) -> None:
        """Save what this step computed."""
        if self._connector_metadata is not None:
            super().wait_for_save()

    @contained(lambda self, finished_req_ids: (None, self._loads.settled() or None))
    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Requests that need not wait any longer, loaded or not, as the second."""
        sent, received = super().get_finished(finished_req_ids)
        return sent, (received or set()) | self._loads.settled() or None

    @contained(lambda self: self._loads.failed())
    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks that were promised in this step and are not loaded, for vLLM to compute."""
        reported: set[int] = super().get_block_ids_with_load_errors()
        return reported | self._loads.failed()

    @contained(lambda self: self._end())
    def clear_connector_metadata(self) -> None:
        """A step ends."""
        self._loads.end()
        super().clear_connector_metadata()

    def _skip(self, step: Step) -> None:
        self._loads.begin(step)
        self._connector_metadata = None

    def _end(self) -> None:
        self._loads.end()
        self._connector_metadata = None

    @contained(lambda self, load: None)
    def _load(self, load: Load) -> None:
        if load.source is None:
            self._release((load.request_id,))
        else:
            missing = lmcache_engine.load(
                self._lmcache_engine, load.request_id, load.source, self._block_size
            )
            missing &= set(load.blocks)
            self._loads.loaded(load, missing)
            if missing:
                logger.warning(
                    "%d of %d blocks of request %s failed to load and are computed",
                    len(missing),
                    len(load.blocks),
                    load.request_id,
                )

    @contained(lambda self: setattr(self, "_connector_metadata", None))
    def _save_nothing(self) -> None:
        if self._connector_metadata is not None:
            lmcache_engine.save_nothing(self._lmcache_engine, self._connector_metadata)

    @contained(lambda self, requests: None)
    def _release(self, requests: Iterable[str]) -> None:
        lmcache_engine.release(self._lmcache_engine, requests)

    # In both.

    @contained(lambda self: None)
    def shutdown(self) -> None:
        """Flush and stop LMCache; its threads would keep the process from exiting."""
        lmcache_engine.stop(self._lmcache_engine)

    def report(self) -> dict[str, Any]:
        """State of this worker's LMCache.

        ``failure`` (empty when it works), ``config``, and ``faults``: exceptions by call.
        """
        faults = self.faults.counts()
        if self.failure:
            return {"failure": self.failure, "config": {}, "faults": faults}
        return {
            "failure": lmcache_engine.failure(self._lmcache_engine),
            "config": lmcache_engine.effective_config(self._lmcache_engine),
            "faults": faults,
        }

    def _scheduler_failure(self) -> str:
        return self.failure or lmcache_engine.scheduler_failure(self._lmcache_engine)

    def _record(self, call: str, error: Exception) -> None:
        self.faults.record(call, error)

    def _fail(self, call: str, error: Exception) -> None:
        self.failure = f"{type(error).__name__}: {error}"
        self.faults.record(call, error)


def _named(vllm_config: VllmConfig) -> VllmConfig:
    """The configuration with the namespace for the model's name, which LMCache puts into keys.

    Raises:
        KeyError: the server left no namespace; the path alone would mix up models.
    """
    named = copy.copy(vllm_config)
    named.model_config = copy.copy(vllm_config.model_config)
    named.model_config.model = vllm_config.kv_transfer_config.kv_connector_extra_config[NAMESPACE]
    return named
