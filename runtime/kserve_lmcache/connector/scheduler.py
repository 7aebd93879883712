"""The connector's part in the scheduler's process."""

from __future__ import annotations

import time
from itertools import chain
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole

from kserve_lmcache.compat.lmcache import engine as lmcache_engine
from kserve_lmcache.compat.lmcache.lookups import LookupPending, SchedulerLookups
from kserve_lmcache.connector.error_containment import ErrorContainment, contained
from kserve_lmcache.connector.isolation import Isolation
from kserve_lmcache.connector.metadata import ConnectorMetadata, Source, without_requests
from kserve_lmcache.connector.pending_loads import PendingLoads
from kserve_lmcache.connector.stock import StockConnector
from kserve_lmcache.connector.traces import Traces
from kserve_lmcache.metrics.table import COMPUTED, PREFIX_CACHE, metric

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm.config import VllmConfig
    from vllm.distributed.kv_events import KVCacheEvent
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request


class SchedulerPart:
    """Looks requests up, begins loads, and builds the metadata for the workers.

    A request that is *hidden* takes no part in LMCache any more: LMCache's state of the request
    may be wrong after an exception, or the request's KV cannot be told apart from others'.
    """

    def __init__(self, vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> None:
        self._stock = StockConnector(vllm_config, KVConnectorRole.SCHEDULER, kv_cache_config)
        self._loads = PendingLoads(vllm_config.cache_config.block_size)
        self._traces = Traces()
        self._prefix_cache_tokens: dict[str, int] = {}
        self._lookups = self._make_lookups()
        self._lookups_began: dict[str, float] = {}
        self._hidden: set[str] = set()
        self._unpinned: set[str] = set()
        self._isolation = self._make_isolation()

    @property
    def containment(self) -> ErrorContainment:
        """Of this process's LMCache."""
        return self._stock.containment

    @contained(lambda self: Isolation(tags_reach_keys=False))
    def _make_isolation(self) -> Isolation:
        config = lmcache_engine.effective_config(self._stock.adapter)
        return Isolation(tags_reach_keys=not config["use_layerwise"])

    @contained(lambda self: None)
    def _make_lookups(self) -> SchedulerLookups | None:
        return SchedulerLookups(self._stock.adapter)

    @contained(lambda self: None)
    def shutdown(self) -> None:
        """Stop LMCache."""
        self._stock.stop()

    @contained(lambda self, request: self._hide(request.request_id))
    def on_new_request(self, request: Request) -> None:
        """Isolate a request, whatever route it came by."""
        self._isolate(request)

    @contained(lambda self, request, num_computed_tokens: self._find_nothing(request))
    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """The number of tokens to load beyond vLLM's own, and whether the request waits for them.

        ``None`` makes vLLM ask again in the next step. A lookup of slow tiers takes as many steps
        as it needs, and holds up nobody else.
        """
        self._isolate(request)  # on_new_request may have failed
        name = request.request_id
        self._prefix_cache_tokens[name] = num_computed_tokens
        self._traces.add(request)
        if self._loads.must_wait(request):
            return None, False
        if name in self._hidden:
            return 0, False
        adapter = self._stock.adapter
        # Prompt logprobs and some kinds of pooling need every position computed. VLLM does not
        # read its own cache for them, and would return whatever memory holds for loaded positions.
        if request.skip_reading_prefix_cache or self._loads.has_failed(name):
            lmcache_engine.set_cached_tokens(adapter, name, num_computed_tokens, cached_tokens=0)
            return 0, False
        began = self._lookups_began.setdefault(name, time.monotonic())
        try:
            found, _ = self._stock.connector.get_num_new_matched_tokens(
                request, num_computed_tokens
            )
        except LookupPending:
            return None, False
        del self._lookups_began[name]
        if found is not None:
            self._traces.export_lookup(
                name,
                began,
                prompt_tokens=request.num_prompt_tokens,
                prefix_cache_tokens=num_computed_tokens,
                found_tokens=found,
            )
        if found == 0:
            lmcache_engine.limit_cached_tokens(adapter, name, num_computed_tokens)
        if not found:
            return found, False
        if not self._loads.may_load(request, num_computed_tokens):
            return None, False
        return found, True

    @contained(lambda self, request, *_: self._hide(request.request_id))
    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        """Take note of a request's blocks: first to load into, later to compute."""
        name, table, load = request.request_id, blocks.get_block_ids()[0], None
        if num_external_tokens > 0:
            load = self._loads.add(request, table, num_external_tokens)
        else:
            self._loads.compute(name)
            self._count_tokens(request)
        if name in self._hidden:
            return
        adapter, computed = self._stock.adapter, request.num_computed_tokens
        if computed and self._loads.has_failed(name):
            lmcache_engine.set_cached_tokens(adapter, name, computed, cached_tokens=computed)
        self._stock.connector.update_state_after_alloc(request, blocks, num_external_tokens)
        if load is not None:
            found, in_vllm, configs = lmcache_engine.found_tokens(adapter, request)
            load.source = Source(list(request.all_token_ids[:found]), in_vllm, table, configs)

    @contained(lambda self, scheduler_output: self._build_without_lmcache(scheduler_output))
    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> ConnectorMetadata:
        """The loads and saves of this step."""
        visible = without_requests(scheduler_output, self._hidden)
        return self._build(self._stock.connector.build_connector_meta(visible), scheduler_output)

    @contained(lambda self, connector_output: None)
    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        """Take note of the results of a step in the workers."""
        self._loads.end(connector_output.finished_recving or (), connector_output.invalid_block_ids)
        self._stock.connector.update_connector_output(connector_output)

    @contained(lambda self, request, block_ids: self._forget(request) or (False, None))
    def request_finished(
        self, request: Request, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Forget a request."""
        finished: tuple[bool, dict[str, Any] | None]
        finished = self._stock.connector.request_finished(request, block_ids)
        self._forget(request)
        return finished

    @contained(lambda self: ())
    def take_events(self) -> Iterable[KVCacheEvent]:
        """The chunks that LMCache has stored since the last call."""
        return list(self._stock.connector.take_events())

    def state(self) -> dict[str, Any]:
        """The scheduler's part of the snapshot (:mod:`kserve_lmcache.metrics.snapshots`)."""
        return {"failure": self._failure()}

    @contained(lambda self: self.containment.failure or "LMCache does not tell its state")
    def _failure(self) -> str:
        return lmcache_engine.scheduler_failure(self._stock.adapter)

    def _count_tokens(self, request: Request) -> None:
        """Count the tokens of a prompt that is computed for the first time."""
        prefix = self._prefix_cache_tokens.pop(request.request_id, None)
        if prefix is None or request.num_preemptions:
            return
        cached = max(prefix, request.num_computed_tokens)  # larger after a load
        metric("prompt_tokens_total", source=PREFIX_CACHE).inc(prefix)
        metric("prompt_tokens_total", source=COMPUTED).inc(request.num_prompt_tokens - cached)

    def _isolate(self, request: Request) -> None:
        if not self._isolation.mark(request):
            self._hide(request.request_id)

    def _hide(self, request_id: str) -> None:
        """Hide a request from LMCache for the rest of its life."""
        if request_id not in self._hidden:
            self._hidden.add(request_id)
            self._unpinned.add(request_id)

    def _find_nothing(self, request: Request) -> tuple[int, bool]:
        self._hide(request.request_id)
        return 0, False

    def _build(self, lmcache: Any, output: SchedulerOutput) -> ConnectorMetadata:
        unpinned, self._unpinned = self._unpinned, set()
        loads = self._loads.take_new()
        traces = self._traces.headers(
            chain(output.num_scheduled_tokens, (load.request_id for load in loads))
        )
        return ConnectorMetadata(
            lmcache, loads, unpinned, output.total_num_scheduled_tokens, traces
        )

    def _build_without_lmcache(self, scheduler_output: SchedulerOutput) -> ConnectorMetadata:
        """The metadata of a step of which LMCache may have missed any request."""
        for request_id in scheduler_output.num_scheduled_tokens:
            self._hide(request_id)
        for request_id in scheduler_output.finished_req_ids:
            self._forget_in_lmcache(request_id)
        return self._build(None, scheduler_output)

    def _forget(self, request: Request) -> None:
        self._prefix_cache_tokens.pop(request.request_id, None)
        self._lookups_began.pop(request.request_id, None)
        if self._lookups is not None and self._lookups.forget(request.request_id):
            self._unpinned.add(request.request_id)
        self._traces.forget(request.request_id)
        if request.request_id in self._hidden:
            self._forget_in_lmcache(request.request_id)
        self._hidden.discard(request.request_id)
        self._loads.forget(request.request_id)

    @contained(lambda self, request_id: None)
    def _forget_in_lmcache(self, request_id: str) -> None:
        lmcache_engine.forget(self._stock.adapter, request_id)
