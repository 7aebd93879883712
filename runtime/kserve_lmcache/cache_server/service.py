"""Answers the calls of the engine's processes."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kserve_lmcache.cache_server.messages import (
    Found,
    Hello,
    Lookup,
    Nothing,
    Objects,
    Proofs,
    Row,
    Slots,
    Wait,
    Welcome,
)
from kserve_lmcache.compat.lmcache.storage import Storage

# A fetch that nobody waits for any longer is forgotten after this time.
_FORGOTTEN_SECONDS = 60.0
# So many calls wait as long as they ask for. More are answered soon, to be asked again, so that
# none waits for a thread until its deadline.
_LONG_WAITS = 32
_SHORT_WAIT = 0.05  # seconds


@dataclass(frozen=True)
class _Fetch:
    lookup: Lookup
    local: int
    handle: Any
    began: float = field(default_factory=time.monotonic)

    @property
    def is_forgotten(self) -> bool:
        return time.monotonic() - self.began > _FORGOTTEN_SECONDS


class Service:
    """The calls of :mod:`.messages`; safe to use from several threads.

    Args:
        storage: keeps the objects.
        welcome: the answer to a hello.
        fetched: takes the digests of chunks that were fetched, and returns how many of them each
            tier gave.
        on_prefill_rate: takes the engine's speed, in tokens a second.
        prove: proves the tiers below.
    """

    def __init__(
        self,
        storage: Storage,
        welcome: Welcome,
        fetched: Callable[[Sequence[bytes]], dict[str, int]],
        on_prefill_rate: Callable[[float], None],
        prove: Callable[[], Proofs],
    ) -> None:
        self._storage = storage
        self._welcome = welcome
        self._fetched = fetched
        self._on_prefill_rate = on_prefill_rate
        self._prove = prove
        self._lock = threading.Lock()
        self._tickets = itertools.count(1)
        self._fetches: dict[int, _Fetch] = {}
        self._long_waits = threading.Semaphore(_LONG_WAITS)
        # Reservations that were not completed, oldest first.
        self._reserved: dict[tuple[Row, bytes], float] = {}

    @property
    def handlers(self) -> Mapping[str, Callable[[Any], Any]]:
        """By the name of the call."""
        return {
            "hello": self.hello,
            "lookup": self.lookup,
            "wait": self.wait,
            "reserve": self.reserve,
            "complete": self.complete,
            "withdraw": self.withdraw,
            "read": self.read,
            "release": self.release,
            "discard": self.discard,
            "prove": lambda _: self._prove(),
        }

    def hello(self, hello: Hello) -> Welcome:
        """Say what this server is."""
        if hello.prefill_rate is not None:
            self._on_prefill_rate(hello.prefill_rate)
        self._give_up_reservations()
        return self._welcome

    def lookup(self, lookup: Lookup) -> Found:
        """Say what the shared memory has. Ask tiers below for the rest, in the background."""
        digests, first = lookup.digests, lookup.needed_from
        local = self._storage.find(lookup.rows, digests)
        begin = max(local, first)
        handle = None
        if self._storage.has_tiers and begin < len(digests):
            handle = self._storage.fetch(lookup.rows, digests, begin)
        if handle is None:
            return Found(local, max(0, local - first), {})
        fetch = _Fetch(lookup, local, handle)
        with self._lock:
            ticket = next(self._tickets)
            self._fetches[ticket] = fetch
        return Found(local, max(0, local - first), {}, ticket)

    def wait(self, wait: Wait) -> Found:
        """Wait for the tiers below. A ticket that is not known any more has found nothing."""
        with self._lock:
            fetch = self._fetches.get(wait.ticket)
        if fetch is None or fetch.is_forgotten:
            return Found(0, 0, {})
        found = self._wait_for(fetch, wait.seconds)
        local, first = fetch.local, fetch.lookup.needed_from
        if found is None:
            return Found(local, max(0, local - first), {}, wait.ticket)
        with self._lock:
            self._fetches.pop(wait.ticket, None)
        begin = max(local, first)
        sources = self._fetched(fetch.lookup.digests[begin : begin + found])
        return Found(local, begin + found - first, sources)

    def _wait_for(self, fetch: _Fetch, seconds: float) -> int | None:
        if not self._long_waits.acquire(blocking=False):
            return self._storage.fetched(fetch.handle, min(seconds, _SHORT_WAIT))
        try:
            return self._storage.fetched(fetch.handle, seconds)
        finally:
            self._long_waits.release()

    def reserve(self, objects: Objects) -> Slots:
        """Reserve objects to be written."""
        offsets, dropped = self._storage.reserve(objects.row, objects.digests)
        now = time.monotonic()
        with self._lock:
            for digest, offset in zip(objects.digests, offsets, strict=True):
                if offset >= 0:
                    # Anew at the end, where it was given up and reserved again.
                    self._reserved.pop((objects.row, digest), None)
                    self._reserved[objects.row, digest] = now
        return Slots(offsets, dropped)

    def complete(self, objects: Objects) -> Nothing:
        """Make reserved objects visible."""
        self._end_reservations(objects)
        self._storage.complete(objects.row, objects.digests)
        return Nothing()

    def withdraw(self, objects: Objects) -> Nothing:
        """Give back reserved objects that nobody writes."""
        self._end_reservations(objects)
        self._storage.withdraw(objects.row, objects.digests)
        return Nothing()

    def _end_reservations(self, objects: Objects) -> None:
        with self._lock:
            for digest in objects.digests:
                self._reserved.pop((objects.row, digest), None)

    def read(self, objects: Objects) -> Slots:
        """Lock objects, from the first up to one that is missing."""
        return Slots(self._storage.read(objects.row, objects.digests))

    def release(self, objects: Objects) -> Nothing:
        """Unlock objects."""
        self._storage.release(objects.row, objects.digests)
        return Nothing()

    def discard(self, objects: Objects) -> Nothing:
        """Delete objects that are not what was stored."""
        self._storage.discard(objects.row, objects.digests)
        return Nothing()

    def _give_up_reservations(self) -> None:
        """Give back what a worker reserved and never completed, and forget old fetches.

        The worker may be gone. LMCache lets the reservation end, and keeps the memory until the
        same object is reserved again.
        """
        now, ended = time.monotonic(), []
        with self._lock:
            for (row, digest), since in self._reserved.items():
                if now - since <= self._storage.reservation_seconds + 1:
                    break
                ended.append((row, digest))
            for each in ended:
                del self._reserved[each]
            forgotten = [each for each in self._fetches.items() if each[1].is_forgotten]
        for row, digest in ended:
            self._storage.give_up(row, digest)
        for ticket, fetch in forgotten:
            # LMCache keeps a result until somebody takes it.
            if self._storage.fetched(fetch.handle, 0) is not None:
                with self._lock:
                    self._fetches.pop(ticket, None)
