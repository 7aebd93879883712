"""The cache server as the scheduler's process uses it: lookups, and the plan of saves."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from kserve_lmcache.cache_server.messages import Found, Lookup, Row, Wait
from kserve_lmcache.cache_server.rpc import CacheServerError, Call
from kserve_lmcache.compat.lmcache.pictures import tokens_in_keys
from kserve_lmcache.connector.isolation import tag_of
from kserve_lmcache.connector.multiprocess.digests import ChunkDigests
from kserve_lmcache.connector.multiprocess.session import Connection, Session
from kserve_lmcache.connector.multiprocess.settings import Settings
from kserve_lmcache.connector.multiprocess.work import Save, Source
from kserve_lmcache.connector.token_metrics import count_lookup

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

# The server answers at once what its memory has. A request waits so long for the answer.
_LOOKUP_SECONDS = 0.05
# A step that computes nothing waits so long for an answer.
_IDLE_WAIT = 0.005
_GRACE_SECONDS = 0.1  # beyond what the server waits for its tiers
# Calls of either kind at a time. The server would answer more of them after their deadlines.
_CALLS = 32


@dataclass
class _Lookup:
    """A lookup that runs, or its result.

    Attributes:
        connection: that it was sent by.
        digests: that were asked for.
        first: how many of them vLLM has.
        message: the next call to the server.
        call: the call; ``None`` until it begins.
        found: the answer, once it is final.
    """

    connection: Connection
    digests: Sequence[bytes]
    first: int
    message: Lookup | Wait
    call: Call | None = None
    found: Found | None = None

    def cancel(self) -> None:
        """Wait for the answer no longer."""
        if self.call is not None:
            self.call.cancel()


@dataclass
class _Tracked:
    """A request.

    Attributes:
        request: vLLM's.
        salt: of the request.
        digests: of its chunks.
        lookup: its lookup; ``None`` until there is one.
        computed: tokens that vLLM had when it asked last.
        kept: numbers of chunks that the server has.
        saved: how many of the first chunks need no further look: the server has them or they were
            saved.
        blocks: of the request, as far as it is computed in this step.
    """

    request: Request
    salt: str
    digests: ChunkDigests
    lookup: _Lookup | None = None
    computed: int = 0
    kept: set[int] = field(default_factory=set)
    saved: int = 0
    blocks: list[int] = field(default_factory=list)


class MultiprocessSchedulerCache:
    """Implements :class:`~kserve_lmcache.connector.caches.SchedulerCache`."""

    tags_reach_keys = True

    def __init__(self, vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> None:
        self._settings = Settings.of(vllm_config, kv_cache_config)
        self._rows: list[Row] = []
        self._requests: dict[str, _Tracked] = {}
        self._answered = threading.Event()
        self._is_waiting = False  # for an answer, in this step
        self._free_calls = {kind: threading.Semaphore(_CALLS) for kind in (Lookup, Wait)}
        self._session = Session(self._settings.directory, maps=False)

    def look_up(self, request: Request, computed_tokens: int) -> int | None:
        """The number of tokens to load beyond those that vLLM has; ``None``: not known yet."""
        tracked, size = self._tracked(request), self._settings.chunk_tokens
        first = computed_tokens // size
        lookup = tracked.lookup
        if lookup is None or (lookup.found is not None and lookup.first > first):
            lookup = tracked.lookup = self._lookup(tracked, first)
            if lookup is None:
                return 0
        found = self._result(lookup)
        if found is None:
            self._is_waiting = True
            return None
        tracked.kept = {*range(found.local), *range(lookup.first, lookup.first + found.chunks)}
        tokens = (lookup.first + found.chunks) * size
        # The last token of a prompt is computed: its logits are needed.
        tokens = min(tokens, int(request.num_tokens) - 1) - computed_tokens
        tracked.computed = computed_tokens
        if tokens <= 0 or tokens < self._settings.least_tokens:
            return 0
        return tokens

    def compute(self, request: Request, computed_tokens: int) -> None:
        """Load nothing for a request, and store what it computes."""
        tracked = self._tracked(request)
        # What was not loaded may be lost, or was discarded because it was not right.
        tracked.kept, tracked.saved = set(), 0

    def allocated(
        self, request: Request, blocks: KVCacheBlocks, tokens: int, load_failed: bool
    ) -> Source | None:
        """Take note of a request's blocks, and return the source of its load."""
        tracked = self._tracked(request)
        if tokens <= 0:
            return None
        lookup, size = tracked.lookup, self._settings.chunk_tokens
        if lookup is None or lookup.found is None:
            return None
        end, first = lookup.first + lookup.found.chunks, tracked.computed // size
        return Source(
            tracked.salt,
            tracked.digests.first(end, tokens_in_keys(request))[first:],
            first,
            tracked.computed,
            blocks.get_block_ids()[0],
            lookup.found.sources,
        )

    def build(self, output: SchedulerOutput) -> list[Save]:
        """The chunks that the step completes."""
        if self._is_waiting and not output.total_num_scheduled_tokens:
            # There is nothing else to do, and vLLM would ask again at once.
            self._answered.wait(_IDLE_WAIT)
        self._answered.clear()
        self._is_waiting = False
        saves = []
        for name, computed in self._with_blocks(output):
            tracked = self._requests[name]
            end = computed + output.num_scheduled_tokens[name]
            if (save := self._save(tracked, end)) is not None:
                saves.append(save)
        return saves

    def update(self, output: KVConnectorOutput) -> None:
        """Nothing: a chunk that was not loaded stays in the server, unless it is not right."""

    def finished(
        self, request: Request, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        """VLLM may use the blocks again: what is saved is copied by now."""
        return False, None

    def forget(self, request_id: str, hidden: bool) -> None:
        """Remove a request that has ended."""
        tracked = self._requests.pop(request_id, None)
        if tracked is not None and tracked.lookup is not None:
            tracked.lookup.cancel()

    def set_workers(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Take the forms of the workers' KV caches, which are parts of the keys."""
        world = len(states)
        if all(each["form"] for each in states):  # a worker that failed has none
            self._rows = [
                self._settings.row((rank, world), each["form"]) for rank, each in enumerate(states)
            ]

    def failure(self) -> str:
        """Why the cache does not work in this process. A server that is gone comes back."""
        return ""

    def stop(self) -> None:
        """Call the server no more."""
        self._session.close()

    def _tracked(self, request: Request) -> _Tracked:
        tracked = self._requests.get(request.request_id)
        if tracked is None:
            salt = tag_of(request)
            seed = f"{self._settings.namespace}\n{salt}"
            digests = ChunkDigests(seed, self._settings.chunk_tokens)
            tracked = self._requests[request.request_id] = _Tracked(request, salt, digests)
        return tracked

    def _lookup(self, tracked: _Tracked, first: int) -> _Lookup | None:
        """A lookup to begin; ``None`` where there is nothing to ask, or nobody."""
        request = tracked.request
        count = request.num_tokens // self._settings.chunk_tokens
        connection = self._session.connection
        if count <= first or connection is None or not self._rows:
            return None
        digests = tracked.digests.first(count, tokens_in_keys(request))
        rows = [msgspec.structs.replace(row, salt=tracked.salt) for row in self._rows]
        return _Lookup(connection, digests, first, Lookup(rows, digests, first))

    def _begin(self, lookup: _Lookup) -> None:
        """Begin the next call of a lookup, unless as many run as may."""
        message = lookup.message
        free = self._free_calls[type(message)]
        if not free.acquire(blocking=False):
            return
        if isinstance(message, Lookup):
            name, seconds = "lookup", _LOOKUP_SECONDS
        else:
            name, seconds = "wait", message.seconds + _GRACE_SECONDS

        def ended(_: Call) -> None:
            free.release()
            self._answered.set()

        try:
            lookup.call = self._session.begin(lookup.connection, name, message, seconds)
        except BaseException:
            free.release()
            raise
        lookup.call.then(ended)

    def _result(self, lookup: _Lookup) -> Found | None:
        """The final answer; ``None`` while there is none. A lookup that fails has found nothing."""
        if lookup.found is not None:
            return lookup.found
        if lookup.call is not None and lookup.call.done():
            try:
                found: Found = lookup.call.result()
            except CacheServerError:
                found = Found(0, 0, {})
            if not found.ticket:
                lookup.found = found
                count_lookup(len(lookup.digests), found.local)
                return found
            lookup.message = Wait(found.ticket, lookup.connection.welcome.fetch_seconds)
            lookup.call = None
        if self._session.connection is not lookup.connection:
            # The breaker is open: nobody waits for this server any more.
            lookup.cancel()
            lookup.found = Found(0, 0, {})
        elif lookup.call is None:
            self._begin(lookup)
        return lookup.found

    def _with_blocks(self, output: SchedulerOutput) -> Iterator[tuple[str, int]]:
        """The known requests of a step and how many tokens vLLM has of them; keeps their blocks."""
        for new in output.scheduled_new_reqs:
            if (tracked := self._requests.get(new.req_id)) is not None:
                tracked.blocks = list(new.block_ids[0])
                yield new.req_id, new.num_computed_tokens
        cached = output.scheduled_cached_reqs
        resumed = cached.resumed_req_ids
        for place, name in enumerate(cached.req_ids):
            if (tracked := self._requests.get(name)) is not None:
                blocks = cached.new_block_ids[place]
                if name in resumed:
                    tracked.blocks = []
                if blocks is not None:
                    tracked.blocks += blocks[0]
                yield name, cached.num_computed_tokens[place]

    def _save(self, tracked: _Tracked, end: int) -> Save | None:
        """The chunks that are complete after ``end`` tokens, and that the server lacks."""
        request, size = tracked.request, self._settings.chunk_tokens
        known = request.num_tokens if self._settings.saves_answers else request.num_prompt_tokens
        # Tokens that a draft model proposed are not among those that are known.
        count = min(end, known, request.num_tokens) // size
        numbers = [each for each in range(tracked.saved, count) if each not in tracked.kept]
        tracked.saved = max(tracked.saved, count)
        if not numbers or self._session.connection is None:
            return None
        digests = tracked.digests.first(count, tokens_in_keys(request))
        per_chunk = size // self._settings.block_tokens
        return Save(
            request.request_id,
            tracked.salt,
            [digests[number] for number in numbers],
            [tracked.blocks[each * per_chunk : (each + 1) * per_chunk] for each in numbers],
        )
