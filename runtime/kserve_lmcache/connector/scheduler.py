"""The connector in the scheduler's process."""

from __future__ import annotations

import time
from itertools import chain
from typing import TYPE_CHECKING, Any

from kserve_lmcache.connector import lmcache_engine
from kserve_lmcache.connector.base import Side
from kserve_lmcache.connector.error_containment import contained
from kserve_lmcache.connector.metadata import Step, without
from kserve_lmcache.metrics.table import COMPUTED, PREFIX_CACHE, metric

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm.distributed.kv_events import KVCacheEvent
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

    from kserve_lmcache.connector.isolation import Isolation
    from kserve_lmcache.connector.pending_loads import PendingLoads
    from kserve_lmcache.connector.traces import Traces


class SchedulerSide(Side):
    """Looks requests up, promises what can be loaded, and tells the workers of it."""

    _isolation: Isolation
    _promises: PendingLoads
    _prefix: dict[str, int]
    _excluded: set[str]
    _dropped: set[str]
    _traces: Traces

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
        self._prefix[request.request_id] = num_computed_tokens
        self._traces.meet(request)
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
        began = time.monotonic()
        found, _ = super().get_num_new_matched_tokens(request, num_computed_tokens)
        if found is not None:
            self._traces.looked_up(
                name,
                began,
                prompt_tokens=request.num_prompt_tokens,
                prefix_cache_tokens=num_computed_tokens,
                found_tokens=found,
            )
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
            self._count(request)
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
        return self._next_step(super().build_connector_meta(visible), scheduler_output)

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

    def _count(self, request: Request) -> None:
        """Count the tokens of a prompt that is computed now, if it is for the first time."""
        prefix = self._prefix.pop(request.request_id, None)
        if prefix is None or request.num_preemptions:
            return
        cached = max(prefix, request.num_computed_tokens)  # the latter after a load
        metric("prompt_tokens_total", source=PREFIX_CACHE).inc(prefix)
        metric("prompt_tokens_total", source=COMPUTED).inc(request.num_prompt_tokens - cached)

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

    def _next_step(self, lmcache: Any, output: SchedulerOutput) -> Step:
        dropped, self._dropped = self._dropped, set()
        loads = self._promises.take()
        traces = self._traces.of(
            chain(output.num_scheduled_tokens, (load.request_id for load in loads))
        )
        return Step(lmcache, loads, dropped, output.total_num_scheduled_tokens, traces)

    def _lose_step(self, scheduler_output: SchedulerOutput) -> Step:
        """LMCache may have the books of any request of the step wrong now."""
        for request_id in scheduler_output.num_scheduled_tokens:
            self._exclude(request_id)
        for request_id in scheduler_output.finished_req_ids:
            self._forget_in_lmcache(request_id)
        return self._next_step(None, scheduler_output)

    def _forget(self, request: Request) -> None:
        self._prefix.pop(request.request_id, None)
        self._traces.forget(request.request_id)
        if request.request_id in self._excluded:
            self._forget_in_lmcache(request.request_id)
        self._excluded.discard(request.request_id)
        self._promises.forget(request.request_id)

    @contained(lambda self, request_id: None)
    def _forget_in_lmcache(self, request_id: str) -> None:
        lmcache_engine.forget(self._lmcache_engine, request_id)
