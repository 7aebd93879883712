"""The remote or disk tier of one worker: everything that a store may do to it ends in a miss."""

from __future__ import annotations

import functools
import logging
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.metrics import start_up_timing
from kserve_lmcache.metrics.table import metric
from kserve_lmcache.tiers.guard.breaker import SLOW, Breaker
from kserve_lmcache.tiers.guard.codec import Buffer, CorruptValueError, Layout, decode_value
from kserve_lmcache.tiers.guard.corrupt_keys import CorruptKeys
from kserve_lmcache.tiers.guard.counters import Counters
from kserve_lmcache.tiers.guard.deadline_executor import DeadlineExecutor
from kserve_lmcache.tiers.guard.load_cost import LoadCost
from kserve_lmcache.tiers.guard.store import Store, StoreError
from kserve_lmcache.tiers.guard.writer import Chunk, Writer

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LANES = ("lookup", "load", "write")
_SILENCE = 60.0  # seconds until the same is said again


class Tier:
    """Looks chunks up, loads and stores them; no method raises, and none waits for long.

    Args:
        name: the store's, as it may be shown.
        make_store: makes a client of the store for one of the lanes, whose name it is given.
        limits: of time and memory.
        chunk_tokens: tokens of a whole chunk.
        chunk_bytes: bytes of a whole chunk.
        kind: which of :data:`~kserve_lmcache.metrics.table.TIERS` it is.
        also: what else belongs into the report.
    """

    def __init__(
        self,
        name: str,
        make_store: Callable[[str], Store],
        limits: TierLimits,
        chunk_tokens: int,
        chunk_bytes: int,
        kind: str = "remote",
        also: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self.load_cost = LoadCost(limits.lookup)
        self.counters = Counters(kind)
        self._kind = kind
        self._say_up(False)
        self._name = name
        self._title = f"{kind} tier {name}"
        self._also = also
        self._limits = limits
        self._chunk_tokens = chunk_tokens
        self._chunk_bytes = chunk_bytes
        self._reason = "not asked yet"
        self._mistakes: set[str] = set()
        self._silent_until: dict[str, float] = {}
        self._spoiled = CorruptKeys()
        self._lanes = {
            lane: DeadlineExecutor(f"{kind}-{lane}", functools.partial(make_store, lane))
            for lane in _LANES
        }
        self._breaker = Breaker(self._probe, self._say_connected, self._give_up, self._say_refused)
        self._writer = Writer(
            self._lanes["write"],
            self._breaker,
            limits,
            self.counters,
            self._spoiled,
            self._say_full,
            self._mistake,
            kind,
        )

    def lookup(self, keys: Sequence[str]) -> int:
        """How many of ``keys``, from the first one on, are worth loading."""
        if not keys:
            return 0
        if not self._breaker.is_closed:
            self.counters.add("lookups_skipped")
            return 0
        self.counters.add("lookups")
        sizes = self._call("lookup", lambda store: store.sizes(keys), self._limits.lookup)
        found = self._count(keys, sizes or ())
        self.counters.add("lookup_hits", found)
        self.counters.add("lookup_misses", len(keys) - found)
        if found and not self.load_cost.is_worth(
            found * self._chunk_tokens, found * self._chunk_bytes
        ):
            self.counters.add("loads_skipped")
            return 0
        return found

    def _count(self, keys: Sequence[str], sizes: Sequence[int]) -> int:
        """How many of the keys, from the first one on, have a value that may be right."""
        found = 0
        for key, size in zip(keys, sizes, strict=False):
            if size == 0 or key in self._spoiled:
                break
            found += 1
        return found

    def load(
        self,
        keys: Sequence[str],
        take: Callable[[Layout, memoryview], T | None],
        release: Callable[[T], None],
    ) -> list[T]:
        """What is made of the values of ``keys``, from the first one on, as far as they come.

        Args:
            keys: of the chunks.
            take: copies a payload and gives its copy, or ``None`` where there is no room.
            release: gives back a copy that came too late.
        """
        if not keys or not self._breaker.is_closed:
            return []
        self.counters.add("loads")
        size = len(keys) * self._chunk_bytes
        deadline = self.load_cost.deadline(len(keys) * self._chunk_tokens, size, self._limits.load)
        loading = _Loading(keys, take, release)
        began = time.monotonic()
        self._call("load", loading.run, deadline)
        taken = loading.finish()
        self.counters.add("chunks_read", len(taken))
        self.counters.add("read_bytes", loading.bytes)
        seconds = time.monotonic() - began
        metric("load_seconds", tier=self._kind).observe(seconds)
        self.load_cost.loaded(loading.bytes, seconds)
        if loading.outcome:
            self.counters.add(loading.outcome)
        else:
            self.counters.add("chunks_late", len(keys) - len(taken))
        if loading.corrupt:
            self._say_corrupt(loading.corrupt)
            self._spoiled.add(keys[len(taken)])
            self._writer.delete([keys[len(taken)]])
        self._writer.keep(list(keys[: len(taken)]))
        return taken

    def store(self, key: str, layout: Layout, payload: Buffer, release: Callable[[], None]) -> None:
        """Write a chunk some time.

        Args:
            key: of the chunk.
            layout: of the payload.
            payload: stays as it is until ``release`` is called.
            release: called once, by any thread, when the payload is no longer needed.
        """
        self._writer.put(Chunk(key, layout, payload, release))

    def delete(self, key: str) -> None:
        """Delete a chunk some time."""
        self._writer.delete([key])

    def close(self) -> None:
        """Write what waits, if that is soon done, and leave the store."""
        self._writer.close()
        self._breaker.stop()
        for lane in self._lanes.values():
            lane.close()

    def report(self) -> dict[str, Any]:
        """State and counts, as plain values."""
        up = self._breaker.is_closed
        return {
            "name": self._name,
            "up": up,
            "since": self._breaker.since,
            "reason": "" if up else self._reason,
            "queue_bytes": self._writer.queued_bytes,
            "queue_bytes_max": self._writer.most_queued_bytes,
            "read_bytes_per_second": self.load_cost.bytes_per_second,
            "prefill_tokens_per_second": self.load_cost.prefill.tokens_per_second,
            **self.counters.snapshot(),
            **self._also(),
        }

    def _call(self, lane: str, operation: Callable[[Store], T], seconds: float) -> T | None:
        began = time.monotonic()
        try:
            answer = self._lanes[lane].call(operation, seconds)
        except StoreError as error:
            self.counters.add("failures")
            self._breaker.failed(lane, str(error))
        except Exception as error:
            self._mistake(lane, error)
        else:
            # A load's time says more about its size.
            share = (time.monotonic() - began) / seconds if lane == "lookup" else None
            self._breaker.succeeded(lane, share)
            return answer
        return None

    def _probe(self) -> None:
        """All lanes connect; then the store must answer as fast as requests need it to."""
        for lane in self._lanes.values():
            lane.call(lambda store: store.ping(), self._limits.connect)
        self._lanes["lookup"].call(lambda store: store.ping(), self._limits.lookup * SLOW)

    def _say_connected(self) -> None:
        self.counters.add("connects")
        self._say_up(True)
        start_up_timing.reached(f"{self._kind} tier{start_up_timing.ANSWERS}")
        logger.info("The %s answers", self._title)

    def _give_up(self, reason: str) -> None:
        for lane in self._lanes.values():  # an idle one holds a connection that may be dead
            lane.renew()
        self.counters.add("opened")
        self._say_up(False)
        self._reason = reason
        logger.warning("The %s is not asked for now: %s", self._title, reason)

    def _say_up(self, up: bool) -> None:
        metric("up", tier=self._kind).set(int(up))

    def _say_refused(self, reason: str) -> None:
        if reason != self._reason:
            self._reason = reason
            logger.warning("The %s does not answer: %s", self._title, reason)

    def _say_full(self, reason: str) -> None:
        self._say_rarely(
            "The %s takes no more; it is tried again, and what it refuses is dropped: %s",
            self._title,
            reason,
        )

    def _say_corrupt(self, reason: str) -> None:
        self._say_rarely(
            "A chunk of the %s is not what was stored, and is deleted: %s (%d so far)",
            self._title,
            reason,
            self.counters["chunks_corrupt"],
        )

    def _say_rarely(self, message: str, *values: object) -> None:
        """Log what happens again and again, and is counted."""
        now = time.monotonic()
        if now >= self._silent_until.get(message, 0.0):
            self._silent_until[message] = now + _SILENCE
            logger.warning(message, *values)

    def _mistake(self, lane: str, error: Exception) -> None:
        """Log what should never be raised once with its trace, and leave the store alone."""
        self.counters.add("exceptions")
        trace = "".join(traceback.format_exception(error))
        if trace not in self._mistakes:
            self._mistakes.add(trace)
            logger.error("Unexpected in the %s:\n%s", self._title, trace)
        self._breaker.failed(lane, f"{type(error).__name__}: {error}")


class _Loading(Generic[T]):
    """A load that may be left while it runs."""

    def __init__(
        self,
        keys: Sequence[str],
        take: Callable[[Layout, memoryview], T | None],
        release: Callable[[T], None],
    ) -> None:
        self.bytes = 0
        self.corrupt = ""
        self.outcome = ""  # the counter for why it ended early, if it did by itself
        self._keys = keys
        self._take = take
        self._release = release
        self._lock = threading.Lock()
        self._left = False
        self._taken: list[T] = []

    def run(self, store: Store) -> None:
        """Take chunk after chunk, in the lane's thread."""
        values = store.read(self._keys)
        try:
            for key, value in zip(self._keys, values, strict=True):
                if self._left or not self._take_one(key, value):
                    return
        finally:
            close = getattr(values, "close", None)
            if close is not None:
                close()

    def finish(self) -> list[T]:
        """What was taken; whatever comes later is given back."""
        with self._lock:
            self._left = True
            return self._taken

    def _take_one(self, key: str, value: Buffer | None) -> bool:
        if value is None:
            self.outcome = "chunks_missing"
            return False
        try:
            layout, payload = decode_value(key, value)
        except CorruptValueError as error:
            self.outcome, self.corrupt = "chunks_corrupt", str(error)
            return False
        taken = self._take(layout, payload)
        if taken is None:
            self.outcome = "chunks_without_room"
            return False
        with self._lock:
            if not self._left:
                self._taken.append(taken)
                self.bytes += len(value)
                return True
        self._release(taken)
        return False
