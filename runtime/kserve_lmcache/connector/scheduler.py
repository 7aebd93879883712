"""The connector's part in the scheduler's process."""

from __future__ import annotations

import time
from itertools import chain
from typing import TYPE_CHECKING, Any

from kserve_lmcache.connector.error_containment import ErrorContainment, contained
from kserve_lmcache.connector.isolation import Isolation
from kserve_lmcache.connector.metadata import ConnectorMetadata, without_requests
from kserve_lmcache.connector.modes import scheduler_cache
from kserve_lmcache.connector.pending_loads import PendingLoads
from kserve_lmcache.connector.traces import Traces
from kserve_lmcache.connector.usage import SOURCES
from kserve_lmcache.metrics.table import COMPUTED, PREFIX_CACHE, metric

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vllm.config import VllmConfig
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

    from kserve_lmcache.connector.caches import SchedulerCache


class SchedulerPart:
    """Looks requests up, begins loads, and builds the metadata for the workers.

    A request that is *hidden* takes no part in the cache any more: the cache's state of the request
    may be wrong after an exception, or the request's KV cannot be told apart from others'.

    Attributes:
        containment: counts and logs what the cache raises in this process.
    """

    _cache: SchedulerCache

    def __init__(self, vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> None:
        self.containment = ErrorContainment()
        self._loads = PendingLoads(vllm_config.cache_config.block_size)
        self._traces = Traces()
        self._prefix_cache_tokens: dict[str, int] = {}
        self._sources: dict[str, dict[str, int]] = {}  # cached tokens of a request by their source
        self._lookups_began: dict[str, float] = {}
        self._hidden: set[str] = set()
        self._unpinned: set[str] = set()
        self._isolation = Isolation(tags_reach_keys=False)
        try:
            self._cache = scheduler_cache(vllm_config, kv_cache_config)
            self._isolation = Isolation(self._cache.tags_reach_keys)
        except Exception as error:
            self.containment.give_up("__init__", error)

    @contained(lambda self: None)
    def shutdown(self) -> None:
        """Stop the cache."""
        self._cache.stop()

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
        # Prompt logprobs and some kinds of pooling need every position computed. VLLM does not
        # read its own cache for them, and would return whatever memory holds for loaded positions.
        if request.skip_reading_prefix_cache or self._loads.has_failed(name):
            self._cache.compute(request, num_computed_tokens)
            return 0, False
        began = self._lookups_began.setdefault(name, time.monotonic())
        found = self._cache.look_up(request, num_computed_tokens)
        if found is None:
            return None, False
        del self._lookups_began[name]
        self._traces.export_lookup(
            name,
            began,
            prompt_tokens=request.num_prompt_tokens,
            prefix_cache_tokens=num_computed_tokens,
            found_tokens=found,
        )
        if not found:
            return 0, False
        if not self._loads.may_load(request, num_computed_tokens):
            return None, False
        return found, True

    @contained(lambda self, request, *_: self._hide(request.request_id))
    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        """Take note of a request's blocks: first to load into, later to compute."""
        name, load = request.request_id, None
        if num_external_tokens > 0:
            table = blocks.get_block_ids()[0]
            load = self._loads.add(request, table, num_external_tokens)
        else:
            self._loads.compute(name)
            self._count_tokens(request)
        if name in self._hidden:
            return
        failed = self._loads.has_failed(name)
        source = self._cache.allocated(request, blocks, num_external_tokens, failed)
        if load is not None:
            load.source = source

    @contained(lambda self, scheduler_output: self._build_without_cache(scheduler_output))
    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> ConnectorMetadata:
        """The loads and saves of this step."""
        visible = without_requests(scheduler_output, self._hidden)
        return self._build(self._cache.build(visible), scheduler_output)

    @contained(lambda self, connector_output: None)
    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        """Take note of the results of a step in the workers."""
        self._loads.end(connector_output.finished_recving or (), connector_output.invalid_block_ids)
        loaded = connector_output.kv_connector_worker_meta
        for name, tokens in loaded.requests.items() if loaded is not None else ():
            if name in self._prefix_cache_tokens:  # it has not ended meanwhile
                self._sources[name] = dict(tokens)
        self._cache.update(connector_output)

    @contained(lambda self, request, block_ids: self._forget(request) or (False, None))
    def request_finished(
        self, request: Request, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Forget a request."""
        waits, parameters = self._cache.finished(request, block_ids)
        sources = self._sources.get(request.request_id)
        self._forget(request)
        if sources and PREFIX_CACHE in sources:
            parameters = {**(parameters or {}), SOURCES: sources}
        return waits, parameters

    @contained(lambda self, states: None)
    def set_workers(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Take the workers' parts of their first snapshots, by rank."""
        self._cache.set_workers(states)

    def state(self) -> dict[str, Any]:
        """The scheduler's part of the snapshot (:mod:`kserve_lmcache.metrics.snapshots`)."""
        return {"failure": self._failure()}

    @contained(lambda self: self.containment.failure or "the cache does not tell its state")
    def _failure(self) -> str:
        return self._cache.failure()

    def _count_tokens(self, request: Request) -> None:
        """Count the tokens of a prompt that is computed for the first time."""
        prefix = self._prefix_cache_tokens.pop(request.request_id, None)
        if prefix is None or request.num_preemptions:
            return
        cached = max(prefix, request.num_computed_tokens)  # larger after a load
        metric("prompt_tokens_total", source=PREFIX_CACHE).inc(prefix)
        self._sources.setdefault(request.request_id, {})[PREFIX_CACHE] = prefix
        metric("prompt_tokens_total", source=COMPUTED).inc(request.num_prompt_tokens - cached)

    def _isolate(self, request: Request) -> None:
        if not self._isolation.mark(request):
            self._hide(request.request_id)

    def _hide(self, request_id: str) -> None:
        """Hide a request from the cache for the rest of its life."""
        if request_id not in self._hidden:
            self._hidden.add(request_id)
            self._unpinned.add(request_id)

    def _find_nothing(self, request: Request) -> tuple[int, bool]:
        self._hide(request.request_id)
        return 0, False

    def _build(self, cache: Any, output: SchedulerOutput) -> ConnectorMetadata:
        unpinned, self._unpinned = self._unpinned, set()
        loads = self._loads.take_new()
        traces = self._traces.headers(
            chain(output.num_scheduled_tokens, (load.request_id for load in loads))
        )
        return ConnectorMetadata(cache, loads, unpinned, output.total_num_scheduled_tokens, traces)

    def _build_without_cache(self, scheduler_output: SchedulerOutput) -> ConnectorMetadata:
        """The metadata of a step of which the cache may have missed any request."""
        for request_id in scheduler_output.num_scheduled_tokens:
            self._hide(request_id)
        for request_id in scheduler_output.finished_req_ids:
            self._forget_in_cache(request_id, hidden=True)
        return self._build(None, scheduler_output)

    def _forget(self, request: Request) -> None:
        self._prefix_cache_tokens.pop(request.request_id, None)
        self._sources.pop(request.request_id, None)
        self._lookups_began.pop(request.request_id, None)
        self._traces.forget(request.request_id)
        self._forget_in_cache(request.request_id, request.request_id in self._hidden)
        self._hidden.discard(request.request_id)
        self._loads.forget(request.request_id)

    @contained(lambda self, request_id, hidden: None)
    def _forget_in_cache(self, request_id: str, hidden: bool) -> None:
        # Whatever a lookup has found for it. A worker that holds nothing does nothing.
        self._unpinned.add(request_id)
        self._cache.forget(request_id, hidden)
