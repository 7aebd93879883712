"""Chunks of the local tier that LMCache must keep for some time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmcache.utils import CacheEngineKey
    from lmcache.v1.memory_management import MemoryObj

    from kserve_lmcache.compat.lmcache.local_tier import LocalTier

_LOOK_SECONDS = 1.0  # between two looks at pins that have ended


class FullError(Exception):
    """So many bytes may not be pinned: a tier full of pinned chunks stores nothing more."""


@dataclass
class _Pin:
    memory: MemoryObj
    until: float  # by time.monotonic()
    reason: str


class Pins:
    """Holds a reference to each pinned chunk. Safe to use from several threads.

    Pins of LMCache's own end after a fixed time, and it knows none for a tier below.

    Args:
        local: the tier.
        max_bytes: that may be pinned.
    """

    def __init__(self, local: LocalTier, max_bytes: int) -> None:
        self._local = local
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._pins: dict[CacheEngineKey, _Pin] = {}
        self._thread: threading.Thread | None = None

    def pin(
        self, keys: Sequence[CacheEngineKey], seconds: float, reason: str = ""
    ) -> tuple[int, int]:
        """Pin the chunks that the tier has. Returns their number and their bytes.

        Args:
            keys: of the chunks.
            seconds: from now on. A pin that lasts longer keeps its end.
            reason: of the pins that are new.

        Raises:
            FullError: they are too many; none of them is pinned anew.
        """
        until = time.monotonic() + seconds
        taken = {key: memory for key in keys if (memory := self._local.take(key)) is not None}
        with self._lock:
            new = {key: memory for key, memory in taken.items() if key not in self._pins}
            size = sum(pin.memory.get_physical_size() for pin in self._pins.values())
            size += sum(memory.get_physical_size() for memory in new.values())
            fits = size <= self._max_bytes
            if fits:
                for key, memory in new.items():
                    self._pins[key] = _Pin(memory, until, reason)
                for key in taken:
                    self._pins[key].until = max(self._pins[key].until, until)
                self._watch()
        for key, memory in taken.items():
            if not fits or key not in new:
                memory.ref_count_down()
        if not fits:
            raise FullError
        return len(taken), sum(memory.get_physical_size() for memory in taken.values())

    def unpin(self, keys: Iterable[CacheEngineKey], reason: str = "") -> None:
        """Keep these chunks no longer; with a reason, those that were pinned for it alone."""
        with self._lock:
            ended = [
                self._pins.pop(key)
                for key in keys
                if key in self._pins and reason in ("", self._pins[key].reason)
            ]
        _release(ended)

    def unpin_if(self, takes: Callable[[CacheEngineKey], bool]) -> None:
        """Keep no longer the chunks for whose keys ``takes`` says so."""
        with self._lock:
            keys = [*self._pins]
        self.unpin(key for key in keys if takes(key))

    def _watch(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="pins", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            time.sleep(_LOOK_SECONDS)
            now = time.monotonic()
            with self._lock:
                keys = [key for key, pin in self._pins.items() if pin.until <= now]
                ended = [self._pins.pop(key) for key in keys]
                is_last = not self._pins
                if is_last:
                    self._thread = None
            _release(ended)
            if is_last:
                return


def _release(pins: Iterable[_Pin]) -> None:
    for pin in pins:
        pin.memory.ref_count_down()
