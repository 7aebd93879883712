"""The keys whose values failed the checksum."""

from __future__ import annotations

import threading
from collections.abc import Iterable

_MAX_KEYS = 10_000  # older keys are dropped, and found again when their values are read


class CorruptKeys:
    """Keys that count as missing until they are written again. Not every store can delete.

    Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: dict[str, None] = {}

    def add(self, key: str) -> None:
        """Adds a key whose value is corrupt."""
        with self._lock:
            self._keys[key] = None
            if len(self._keys) > _MAX_KEYS:
                del self._keys[next(iter(self._keys))]

    def discard(self, keys: Iterable[str]) -> None:
        """Removes keys whose values were written again."""
        with self._lock:
            for key in keys:
                self._keys.pop(key, None)

    def __contains__(self, key: str) -> bool:
        return key in self._keys
