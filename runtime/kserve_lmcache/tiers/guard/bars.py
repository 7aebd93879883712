"""Chunks that a tier does not take for some time, because they are being deleted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Takes = Callable[[str], bool]


class Bars:
    """The bars of a worker's tiers. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Replaced as a whole, so that it is read without the lock.
        self._bars: tuple[tuple[Takes, float], ...] = ()

    def __contains__(self, key: str) -> bool:
        if not self._bars:
            return False
        now = time.monotonic()
        return any(until > now and takes(key) for takes, until in self._bars)

    @contextmanager
    def up(self, takes: Takes, after: Callable[[], float]) -> Iterator[None]:
        """Bar chunks while the block runs, and for some seconds after.

        A load that began before reads a value that is deleted meanwhile, and would put it back.

        Args:
            takes: whether a key is barred.
            after: returns the seconds, at the end of the block.
        """
        bar = (takes, float("inf"))
        with self._lock:
            self._bars = (*self._living(), bar)
        try:
            yield
        finally:
            ending = (takes, time.monotonic() + after())
            with self._lock:
                self._bars = tuple(ending if each is bar else each for each in self._living())

    def _living(self) -> list[tuple[Takes, float]]:
        now = time.monotonic()
        return [each for each in self._bars if each[1] > now]
