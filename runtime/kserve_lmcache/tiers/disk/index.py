"""Which files a directory holds, and which of them were used longest ago."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_BLOCK = 4096  # bytes; a file occupies whole blocks
_AT_A_TIME = 1000  # files that are found to be the oldest


@dataclass(frozen=True)
class File:
    """A file of the directory.

    Attributes:
        size: its bytes.
        used: when it was used last, in nanoseconds of Unix time; in the file system its mtime.
    """

    size: int
    used: int

    @property
    def occupied(self) -> int:
        """Bytes that it takes from the disk."""
        return -(-self.size // _BLOCK) * _BLOCK


class DiskIndex:
    """Files by name, in memory alone. Safe to use from several threads.

    Attributes:
        occupied: bytes that all of them take from the disk.
    """

    def __init__(self) -> None:
        self.occupied = 0
        self._lock = threading.Lock()
        self._files: dict[str, File] = {}
        # Some that were found now and then, the oldest last.
        self._oldest: list[tuple[int, str]] = []
        self._changed: set[str] = set()  # since a count began, which may have seen it or not

    def __len__(self) -> int:
        return len(self._files)

    def size_of(self, name: str) -> int:
        """Bytes of a file; 0 where none is known."""
        file = self._files.get(name)
        return 0 if file is None else file.size

    def add(self, name: str, file: File) -> None:
        """A file is there now."""
        with self._lock:
            self._changed.add(name)
            self._set(name, file)

    def use(self, names: Sequence[str]) -> None:
        """Files were used, the chunks of one prompt: without the first, which leaves last, the
        others are of no use."""
        now = time.time_ns()
        with self._lock:
            for number, name in enumerate(names):
                if (file := self._files.get(name)) is not None:
                    self._files[name] = File(file.size, max(file.used, now - number))

    def discard(self, name: str) -> None:
        """A file is not there, or not any more."""
        with self._lock:
            self._changed.add(name)
            self._remove(name)

    def take_oldest(self) -> tuple[str, File] | None:
        """The file that was used longest ago, which is forgotten; ``None`` when there is none."""
        while True:
            with self._lock:
                while self._oldest:
                    used, name = self._oldest.pop()
                    file = self._files.get(name)
                    if file is not None and file.used == used:  # else it was used since
                        self._changed.add(name)
                        self._remove(name)
                        return name, file
                if not self._files:
                    return None
                files = list(self._files.items())
            # A sort of all would hold up every thread for long; this lets them through.
            oldest = heapq.nsmallest(_AT_A_TIME, ((file.used, name) for name, file in files))
            with self._lock:
                self._oldest = oldest[::-1]

    def begin_count(self) -> None:
        """Somebody begins to look at all files."""
        with self._lock:
            self._changed.clear()

    def end_count(self, found: Mapping[str, File]) -> None:
        """Take over what all files are, since other processes add and remove some too.

        Args:
            found: all of them, except what changed since the count began.
        """
        with self._lock:
            for name in self._files.keys() - found.keys() - self._changed:
                self._remove(name)
            for name in found.keys() - self._changed:
                known, file = self._files.get(name), found[name]
                if known is None:
                    self._set(name, file)
                    self._oldest.clear()  # it may be older than those
                elif known.used < file.used or known.size != file.size:
                    self._set(name, File(file.size, max(known.used, file.used)))

    def _set(self, name: str, file: File) -> None:
        self._remove(name)
        self._files[name] = file
        self.occupied += file.occupied

    def _remove(self, name: str) -> None:
        file = self._files.pop(name, None)
        if file is not None:
            self.occupied -= file.occupied
