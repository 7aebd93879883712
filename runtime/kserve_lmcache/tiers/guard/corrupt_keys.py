"""Keys whose values are not what was stored."""

from __future__ import annotations

import threading
from collections.abc import Iterable

_MOST = 10_000  # keys; the oldest are forgotten, and found again when they are read


class CorruptKeys:
    """They count as missing until they are written anew, since not every store can delete.

    Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: dict[str, None] = {}

    def add(self, key: str) -> None:
        """The value of ``key`` was read and is wrong."""
        with self._lock:
            self._keys[key] = None
            if len(self._keys) > _MOST:
                del self._keys[next(iter(self._keys))]

    def discard(self, keys: Iterable[str]) -> None:
        """The values of ``keys`` are right again."""
        with self._lock:
            for key in keys:
                self._keys.pop(key, None)

    def __contains__(self, key: str) -> bool:
        return key in self._keys
