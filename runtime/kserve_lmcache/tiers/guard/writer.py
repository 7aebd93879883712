"""Writes chunks in the background, from a queue whose size is bounded in bytes."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.metrics.table import metric
from kserve_lmcache.tiers.guard.breaker import Breaker
from kserve_lmcache.tiers.guard.codec import Buffer, Layout, encode_header
from kserve_lmcache.tiers.guard.corrupt_keys import CorruptKeys
from kserve_lmcache.tiers.guard.counters import Counters
from kserve_lmcache.tiers.guard.daemon_threads import start_supervised
from kserve_lmcache.tiers.guard.store import Entry, Store, StoreFullError

OnPresence = Callable[[Sequence[str], bool | None], None]

_MAX_KEYS = 10_000  # to be kept or deleted; more are dropped
# Seconds without a write after the store was full, doubled each time. A store that has room again
# gets chunks again within the longest pause, in which only one batch is refused.
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 4.0
_CLOSE_SECONDS = 2.0  # to write the queue when the engine stops


@dataclass(frozen=True)
class Chunk:
    """A chunk to be written.

    Attributes:
        key: of the chunk.
        layout: of the payload.
        header: of the value, with the checksum of what the payload was when the chunk was sealed.
        payload: should not change until ``release`` is called. If it does, the value's checksum is
            wrong, and nobody loads the value.
        release: called once, by any thread, when the payload is no longer needed.
    """

    key: str
    header: bytes
    payload: Buffer
    release: Callable[[], None]

    @property
    def size(self) -> int:
        """Bytes of the chunk's value."""
        return len(self.header) + len(self.payload)


def seal(key: str, layout: Layout, payload: Buffer, release: Callable[[], None]) -> Chunk:
    """A chunk whose checksum is made now, while the payload is the caller's.

    A thread that is abandoned in a store may read the payload's memory much later.

    Raises:
        ValueError: the layout has too many tensors to be described.
    """
    return Chunk(key, encode_header(key, layout, payload), payload, release)


class Writer:
    """A thread that writes the queue in batches.

    Args:
        call: runs a write within a deadline; returns ``None`` where it fails.
        breaker: knows whether the store answers.
        limits: of the queue and of a batch.
        counters: of the tier.
        corrupt_keys: keys that are written although the store has a value.
        tier: the tier's name in metrics.
        on_full: called with the reason each time that the store is full.
        on_exception: called with an exception that nothing here should raise; writes go on.
        is_barred: whether a key's chunk is dropped, because it is being deleted.

    Attributes:
        on_presence: takes keys, and whether the store has them after a write; ``None`` where that
            is not known.
        queued_bytes: of the chunks that are queued or being written.
        max_queued_bytes: the largest value that ``queued_bytes`` has had.
    """

    def __init__(
        self,
        call: Callable[[Callable[[Store], str], float], str | None],
        breaker: Breaker,
        limits: TierLimits,
        counters: Counters,
        corrupt_keys: CorruptKeys,
        tier: str,
        on_full: Callable[[str], None],
        on_exception: Callable[[Exception], None],
        is_barred: Callable[[str], bool] = lambda key: False,
    ) -> None:
        self.queued_bytes = 0
        self.max_queued_bytes = 0
        self._call = call
        self._breaker = breaker
        self._limits = limits
        self._counters = counters
        self._corrupt_keys = corrupt_keys
        self._on_full = on_full
        self._on_exception = on_exception
        self._is_barred = is_barred
        self.on_presence: OnPresence = lambda keys, present: None
        self._store_seconds = metric("store_seconds", tier=tier)
        self._queue_bytes = metric("queue_bytes", tier=tier)
        self._changed = threading.Condition()
        self._queue: OrderedDict[str, Chunk] = OrderedDict()
        self._kept: dict[str, None] = {}
        self._deleted: dict[str, None] = {}
        self._pause = _FIRST_PAUSE
        self._full_until = 0.0
        self._closing = False
        self._writing = False  # a batch
        self._thread = start_supervised(f"{tier}-writer", self._run, on_exception)

    def put(self, chunk: Chunk) -> None:
        """Queues a chunk. Drops the oldest queued chunks when the queue is full. Never blocks."""
        dropped: list[Chunk] = []
        reason = "dropped_queue"
        with self._changed:
            # Asked under the lock: :meth:`withdraw` comes after the bar, and sees all from before.
            if chunk.key in self._queue or self._is_barred(chunk.key):
                chunk.release()
                return
            if self._closing:
                dropped.append(chunk)
            elif time.monotonic() < self._full_until:
                reason = "dropped_full"
                dropped.append(chunk)
            else:
                room = self._limits.queue_bytes - chunk.size
                while self._queue and self.queued_bytes > room:
                    _, oldest = self._queue.popitem(last=False)
                    self.queued_bytes -= oldest.size
                    dropped.append(oldest)
                if self.queued_bytes > room:
                    dropped.append(chunk)
                else:
                    self._queue[chunk.key] = chunk
                    self.queued_bytes += chunk.size
                    self.max_queued_bytes = max(self.max_queued_bytes, self.queued_bytes)
            self._queue_bytes.set(self.queued_bytes)
            self._changed.notify_all()
        self._counters.add(reason, len(dropped))
        for each in dropped:
            each.release()

    def keep(self, keys: Sequence[str]) -> None:
        """Restarts the time to live of values that were used."""
        self._remember(self._kept, keys)

    def delete(self, keys: Sequence[str]) -> None:
        """Deletes values."""
        self._remember(self._deleted, keys)

    def withdraw(self, takes: Callable[[str], bool], seconds: float) -> bool:
        """Drops queued chunks, and waits until the batch that is being written has ended.

        Args:
            takes: whether a key's chunk is dropped.
            seconds: to wait at most.

        Returns:
            Whether the batch has ended.
        """
        with self._changed:
            dropped = [self._queue.pop(key) for key in [*self._queue] if takes(key)]
        self._release(dropped)
        with self._changed:
            return self._changed.wait_for(lambda: not self._writing, seconds)

    def close(self) -> None:
        """Writes the queue, if that takes little time, and ends the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(_CLOSE_SECONDS)

    def _remember(self, remembered: dict[str, None], keys: Sequence[str]) -> None:
        with self._changed:
            if len(remembered) < _MAX_KEYS:
                remembered.update(dict.fromkeys(keys))
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closing or self._queue or self._kept or self._deleted
                )
                if self._closing and not self._queue:
                    return
            if self._breaker.wait_closed(1.0):
                self._write_batch()
            elif self._closing:
                self._drop_queue("dropped_failed")

    def _write_batch(self) -> None:
        try:
            self._write_next_batch()
        finally:
            with self._changed:
                self._writing = False
                self._changed.notify_all()

    def _write_next_batch(self) -> None:
        with self._changed:
            self._writing = True
            kept, deleted = [*self._kept], [*self._deleted]
            self._kept.clear()
            self._deleted.clear()
            batch = self._next_batch()
        # Whoever locks it first releases the chunks: the call, since it reads their memory even
        # when it hangs, or this thread where the call never began.
        ownership = threading.Lock()

        def write(store: Store) -> str:
            """Returns the reason where the store is full."""
            if not ownership.acquire(blocking=False):
                return ""
            try:
                if deleted:
                    store.delete(deleted)
                    self.on_presence(deleted, False)
                if kept:
                    store.keep(kept)
                if batch:
                    self._write(store, batch)
                return ""
            except StoreFullError as error:
                return str(error)
            finally:
                self._release(batch)

        try:
            full = self._call(write, self._limits.write)
        finally:
            if ownership.acquire(blocking=False):
                self._release(batch)
        if full is None or full:
            self.on_presence([chunk.key for chunk in batch], None)
        if full is None:
            self._counters.add("dropped_failed", len(batch))
        elif full:
            self._pause_writes(full)
            self._counters.add("dropped_full", len(batch))
        elif batch:
            self._pause = _FIRST_PAUSE

    def _next_batch(self) -> list[Chunk]:
        batch: list[Chunk] = []
        size = 0
        while self._queue:
            oldest = next(iter(self._queue.values()))
            if batch and size + oldest.size > self._limits.batch_bytes:
                break
            batch.append(self._queue.pop(oldest.key))
            size += oldest.size
        return batch

    def _write(self, store: Store, batch: Sequence[Chunk]) -> None:
        """Writes the chunks that the store lacks. Another replica may have written some."""
        began = time.monotonic()
        sizes = store.sizes([chunk.key for chunk in batch])
        new, known = [], []
        for chunk, size in zip(batch, sizes, strict=True):
            if size == 0 or chunk.key in self._corrupt_keys:
                new.append(chunk)
            else:
                known.append(chunk.key)
        if known:
            store.keep(known)
            self._counters.add("chunks_known", len(known))
            self.on_presence(known, True)
        if new:
            store.write([Entry(chunk.key, chunk.header, chunk.payload) for chunk in new])
            self._corrupt_keys.discard(chunk.key for chunk in new)
            self.on_presence([chunk.key for chunk in new], True)
            self._counters.add("chunks_written", len(new))
            self._counters.add("written_bytes", sum(chunk.size for chunk in new))
            self._store_seconds.observe(time.monotonic() - began)

    def _release(self, chunks: Sequence[Chunk]) -> None:
        for chunk in chunks:
            try:
                chunk.release()
            except Exception as error:  # the others must be released all the same
                self._on_exception(error)
        with self._changed:
            self.queued_bytes -= sum(chunk.size for chunk in chunks)
            self._queue_bytes.set(self.queued_bytes)

    def _pause_writes(self, reason: str) -> None:
        self._full_until = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self._on_full(reason)
        self._drop_queue("dropped_full")

    def _drop_queue(self, reason: str) -> None:
        with self._changed:
            dropped = list(self._queue.values())
            self._queue.clear()
        self._counters.add(reason, len(dropped))
        self._release(dropped)
