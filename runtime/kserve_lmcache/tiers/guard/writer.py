"""Writes chunks behind the engine's back, from a queue that never grows beyond its bytes."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.metrics.table import metric
from kserve_lmcache.tiers.guard.breaker import Breaker
from kserve_lmcache.tiers.guard.codec import Buffer, Layout, encode_header, header_size
from kserve_lmcache.tiers.guard.corrupt_keys import CorruptKeys
from kserve_lmcache.tiers.guard.counters import Counters
from kserve_lmcache.tiers.guard.deadline_executor import DeadlineExecutor
from kserve_lmcache.tiers.guard.store import Entry, Store, StoreError, StoreFullError

_LANE = "write"
_MOST_NOTES = 10_000  # keys to be kept or deleted; more are forgotten
_FIRST_PAUSE = 1.0  # seconds without a write after the store was full, doubled each time
_LONGEST_PAUSE = 4.0  # one batch is refused in that time, and hits come back within it
_CLOSING = 2.0  # seconds for what waits when the engine stops


class Chunk:
    """A chunk that waits, and the memory that it holds until :meth:`release`."""

    def __init__(
        self, key: str, layout: Layout, payload: Buffer, release: Callable[[], None]
    ) -> None:
        self.key = key
        self.layout = layout
        self.payload = payload
        self.size = header_size(layout) + len(payload)
        self._release: Callable[[], None] | None = release
        self._lock = threading.Lock()

    def release(self) -> None:
        """Give the memory back, once."""
        with self._lock:
            release, self._release = self._release, None
        if release is not None:
            release()


class Writer:
    """A thread that hands batches to a lane.

    Args:
        lane: for the store's calls.
        breaker: says when the store answers.
        limits: of the queue, a batch and its time.
        counters: what was written and dropped.
        spoiled: what is written although the store has it.
        on_full: told each time that the store was full, and what it said.
        on_mistake: told of what should never be raised.
        kind: of the tier.
    """

    def __init__(
        self,
        lane: DeadlineExecutor,
        breaker: Breaker,
        limits: TierLimits,
        counters: Counters,
        spoiled: CorruptKeys,
        on_full: Callable[[str], None],
        on_mistake: Callable[[str, Exception], None],
        kind: str,
    ) -> None:
        self._lane = lane
        self._breaker = breaker
        self._limits = limits
        self._counters = counters
        self._spoiled = spoiled
        self._on_full = on_full
        self._on_mistake = on_mistake
        self._store_seconds = metric("store_seconds", tier=kind)
        self._queue_bytes = metric("queue_bytes", tier=kind)
        self._changed = threading.Condition()
        self._waiting: OrderedDict[str, Chunk] = OrderedDict()
        self._bytes = 0
        self._most_bytes = 0
        self._kept: dict[str, None] = {}
        self._deleted: dict[str, None] = {}
        self._pause = _FIRST_PAUSE
        self._full_until = 0.0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="remote-writer", daemon=True)
        self._thread.start()

    @property
    def queued_bytes(self) -> int:
        """Bytes of the chunks that wait or are being written."""
        return self._bytes

    @property
    def most_queued_bytes(self) -> int:
        """The most there ever were."""
        return self._most_bytes

    def put(self, chunk: Chunk) -> None:
        """Write ``chunk`` some time. The oldest that wait make room for it; it never waits."""
        dropped: list[Chunk] = []
        with self._changed:
            reason = "dropped_queue"
            if self._closing:
                dropped.append(chunk)
            elif time.monotonic() < self._full_until:
                reason = "dropped_full"
                dropped.append(chunk)
            elif chunk.key in self._waiting:
                chunk.release()
                return
            else:
                while self._waiting and self._bytes + chunk.size > self._limits.queue_bytes:
                    _, oldest = self._waiting.popitem(last=False)
                    self._bytes -= oldest.size
                    dropped.append(oldest)
                if self._bytes + chunk.size > self._limits.queue_bytes:
                    dropped.append(chunk)
                else:
                    self._waiting[chunk.key] = chunk
                    self._bytes += chunk.size
                    self._most_bytes = max(self._most_bytes, self._bytes)
            self._queue_bytes.set(self._bytes)
            self._changed.notify()
        self._counters.add(reason, len(dropped))
        for each in dropped:
            each.release()

    def keep(self, keys: list[str]) -> None:
        """Let values live on, since they were used."""
        self._note(self._kept, keys)

    def delete(self, keys: list[str]) -> None:
        """Delete values."""
        self._note(self._deleted, keys)

    def close(self) -> None:
        """Write what waits, if that is soon done, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(_CLOSING)

    def _note(self, notes: dict[str, None], keys: list[str]) -> None:
        with self._changed:
            if len(notes) < _MOST_NOTES:
                notes.update(dict.fromkeys(keys))
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work)
                if self._closing and not self._waiting:
                    return
            if not self._breaker.wait_closed(1.0):
                if self._closing:
                    self._drop_waiting("dropped_failed")
                continue
            self._work()

    def _has_work(self) -> bool:
        return bool(self._closing or self._waiting or self._kept or self._deleted)

    def _work(self) -> None:
        with self._changed:
            kept, self._kept = list(self._kept), {}
            deleted, self._deleted = list(self._deleted), {}
            batch = self._next_batch()
        count = len(batch)
        started = threading.Event()

        def write(store: Store) -> None:
            started.set()
            try:
                if deleted:
                    store.delete(deleted)
                if kept:
                    store.keep(kept)
                if batch:
                    self._write(store, batch)
            finally:
                # Where the call hangs, the memory that it reads from is not given back.
                self._finish(batch)

        try:
            self._lane.call(write, self._limits.write)
            self._breaker.succeeded(_LANE)
            if count:
                self._pause = _FIRST_PAUSE
        except StoreFullError as error:
            self._hold_back(str(error))
            self._counters.add("dropped_full", count)
        except StoreError as error:
            self._counters.add("failures")
            self._counters.add("dropped_failed", count)
            self._breaker.failed(_LANE, str(error))
        except Exception as error:
            self._counters.add("dropped_failed", count)
            self._on_mistake(_LANE, error)
        finally:
            if not started.is_set():
                self._finish(batch)

    def _next_batch(self) -> list[Chunk]:
        batch: list[Chunk] = []
        size = 0
        while self._waiting:
            oldest = next(iter(self._waiting.values()))
            if batch and size + oldest.size > self._limits.batch_bytes:
                break
            batch.append(self._waiting.pop(oldest.key))
            size += oldest.size
        return batch

    def _write(self, store: Store, batch: list[Chunk]) -> None:
        """Write what the store does not have: another replica may have been faster."""
        sizes = store.sizes([chunk.key for chunk in batch])
        new, known = [], []
        for chunk, size in zip(batch, sizes, strict=True):
            if size == 0 or chunk.key in self._spoiled:
                new.append(chunk)
            else:
                known.append(chunk.key)
        if known:
            store.keep(known)
            self._counters.add("chunks_known", len(known))
        if new:
            store.write(
                [
                    Entry(
                        chunk.key,
                        encode_header(chunk.key, chunk.layout, chunk.payload),
                        chunk.payload,
                    )
                    for chunk in new
                ]
            )
            self._spoiled.discard(chunk.key for chunk in new)
            self._counters.add("chunks_written", len(new))
            self._counters.add("written_bytes", sum(chunk.size for chunk in new))

    def _finish(self, batch: list[Chunk]) -> None:
        for chunk in batch:
            chunk.release()
        with self._changed:
            self._bytes -= sum(chunk.size for chunk in batch)
            self._queue_bytes.set(self._bytes)
        batch.clear()

    def _hold_back(self, reason: str) -> None:
        self._full_until = time.monotonic() + self._pause
        self._on_full(reason)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self._drop_waiting("dropped_full")

    def _drop_waiting(self, reason: str) -> None:
        with self._changed:
            dropped = list(self._waiting.values())
            self._waiting.clear()
        self._counters.add(reason, len(dropped))
        self._finish(dropped)
