"""A load of a prompt's chunks, which may end before the thread that runs it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from kserve_lmcache.tiers.guard.codec import Buffer, CorruptValueError, Layout, decode_value
from kserve_lmcache.tiers.guard.store import Store

T = TypeVar("T")


class Load(Generic[T]):
    """One load, which :meth:`finish` ends at any time while another thread runs it.

    Args:
        keys: of the chunks.
        take: copies a payload and returns the copy, or ``None`` where there is no room.
        release: gives back a copy that came too late.

    Attributes:
        bytes: of the values that were taken.
        outcome: the counter for the reason why the load ended early.
        corruption: the check that a value failed.
    """

    def __init__(
        self,
        keys: Sequence[str],
        take: Callable[[Layout, memoryview], T | None],
        release: Callable[[T], None],
    ) -> None:
        self.bytes = 0
        self.outcome = ""
        self.corruption = ""
        self._keys = keys
        self._take = take
        self._release = release
        self._lock = threading.Lock()
        self._finished = False
        self._taken: list[T] = []

    def run(self, store: Store) -> None:
        """Takes chunks until one is missing or corrupt, or has no room."""
        values = store.read(self._keys)
        try:
            for key, value in zip(self._keys, values, strict=True):
                if self._finished or not self._take_one(key, value):
                    return
        finally:
            if close := getattr(values, "close", None):
                close()

    def finish(self) -> list[T]:
        """Returns the copies. Those that come later are given back."""
        with self._lock:
            self._finished = True
            return self._taken

    def _take_one(self, key: str, value: Buffer | None) -> bool:
        if value is None:
            return self._end("chunks_missing")
        try:
            layout, payload = decode_value(key, value)
        except CorruptValueError as error:
            return self._end("chunks_corrupt", str(error))
        copy = self._take(layout, payload)
        if copy is None:
            return self._end("chunks_without_room")
        with self._lock:
            if not self._finished:
                self._taken.append(copy)
                self.bytes += len(value)
                return True
        self._release(copy)
        return False

    def _end(self, outcome: str, corruption: str = "") -> bool:
        with self._lock:
            if not self._finished:  # else nobody waits for it, and its connection may be cut
                self.outcome, self.corruption = outcome, corruption
        return False
