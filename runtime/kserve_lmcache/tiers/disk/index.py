"""The index of the disk tier's files, in memory: their sizes and the order of their last use."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_BLOCK = 4096  # bytes; a file occupies whole blocks
_OLDEST = 1000  # files that one search for the oldest finds


@dataclass(frozen=True)
class File:
    """A file in the directory.

    Attributes:
        size: in bytes.
        used: time of the last use, in nanoseconds of Unix time. The file's mtime stores it.
    """

    size: int
    used: int

    @property
    def occupied(self) -> int:
        """Disk space of the file, in bytes."""
        return -(-self.size // _BLOCK) * _BLOCK


class DiskIndex:
    """Files by name. Safe to use from several threads.

    Attributes:
        occupied: disk space of all files, in bytes.
    """

    def __init__(self) -> None:
        self.occupied = 0
        self._lock = threading.Lock()
        self._files: dict[str, File] = {}
        # Candidates for the next eviction, the oldest last.
        self._oldest: list[tuple[int, str]] = []
        # Files that are not evicted before a time, by time.monotonic().
        self._held: dict[str, float] = {}
        # Names that changed since the last scan began. The scan may have seen them or not.
        self._changed: set[str] = set()
        self._listener: Callable[[str, bool], None] = lambda name, present: None

    def __len__(self) -> int:
        return len(self._files)

    def size_of(self, name: str) -> int:
        """Returns a file's size in bytes; 0 for an unknown file."""
        file = self._files.get(name)
        return 0 if file is None else file.size

    def used(self, name: str, file: File) -> int:
        """Returns the time of a file's last use. The file may know less than the index."""
        known = self._files.get(name)
        return file.used if known is None else max(known.used, file.used)

    def watch(self, listener: Callable[[str, bool], None]) -> None:
        """Tell from now on which files come and go.

        Args:
            listener: takes a name, and whether the file is there. Calls nothing of the index.
        """
        self._listener = listener

    def tell(self, name: str) -> None:
        """Tell the listener of a file, if it is there."""
        with self._lock:
            if name in self._files:
                self._listener(name, True)

    def add(self, name: str, file: File) -> None:
        """Adds or replaces a file."""
        with self._lock:
            self._changed.add(name)
            self._set(name, file)

    def use(self, names: Sequence[str]) -> None:
        """Records the use of a prompt's files. The first file counts as the last one used.

        A prompt's later chunks are useless without its first ones, so they are evicted first.
        """
        now = time.time_ns()
        with self._lock:
            for number, name in enumerate(names):
                if (file := self._files.get(name)) is not None:
                    self._files[name] = File(file.size, max(file.used, now - number))

    def hold(self, names: Sequence[str], seconds: float, max_bytes: int) -> bool:
        """Keeps files from eviction for some time.

        Args:
            names: of files that the index has.
            seconds: from now on; with 0 they are evicted like others again.
            max_bytes: disk space that held files may occupy.

        Returns:
            Whether there is room for them; else nothing changes.
        """
        now = time.monotonic()
        with self._lock:
            held = {name: until for name, until in self._held.items() if until > now}
            if seconds > 0:
                held |= {name: max(now + seconds, held.get(name, now)) for name in names}
            else:
                held = {name: until for name, until in held.items() if name not in names}
            files = [file for name in held if (file := self._files.get(name)) is not None]
            if sum(file.occupied for file in files) > max_bytes:
                return False
            self._held = held
            return True

    def discard(self, name: str) -> None:
        """Removes a file, where the index has it."""
        with self._lock:
            self._changed.add(name)
            self._remove(name)

    def take_oldest(self) -> tuple[str, File] | None:
        """Removes and returns the least recently used file that is not held.

        ``None`` when there is none.
        """
        while True:
            with self._lock:
                while self._oldest:
                    used, name = self._oldest.pop()
                    file = self._files.get(name)
                    # Not used in the meantime, and not held.
                    if file is not None and file.used == used and not self._is_held(name):
                        self._changed.add(name)
                        self._remove(name)
                        return name, file
                files = [each for each in self._files.items() if not self._is_held(each[0])]
                if not files:
                    return None
            # Runs without the lock and does not sort all files, so that other threads can work.
            oldest = heapq.nsmallest(_OLDEST, ((file.used, name) for name, file in files))
            with self._lock:
                self._oldest = oldest[::-1]

    def begin_scan(self) -> None:
        """Marks the beginning of a scan of the directory."""
        with self._lock:
            self._changed.clear()

    def end_scan(self, found: Mapping[str, File]) -> None:
        """Takes over the files that a scan found. Other processes add and remove files too.

        Args:
            found: all files. Names that changed since :meth:`begin_scan` are ignored.
        """
        with self._lock:
            for name in self._files.keys() - found.keys() - self._changed:
                self._remove(name)
            for name in found.keys() - self._changed:
                known, file = self._files.get(name), found[name]
                if known is None:
                    self._set(name, file)
                    self._oldest.clear()  # the file may be older than the candidates
                elif known.used < file.used or known.size != file.size:
                    self._set(name, File(file.size, max(known.used, file.used)))

    def _is_held(self, name: str) -> bool:
        return bool(self._held) and self._held.get(name, 0.0) > time.monotonic()

    def _set(self, name: str, file: File) -> None:
        former = self._files.get(name)
        self._files[name] = file
        self.occupied += file.occupied - (0 if former is None else former.occupied)
        if former is None:
            self._listener(name, True)

    def _remove(self, name: str) -> None:
        file = self._files.pop(name, None)
        if file is not None:
            self.occupied -= file.occupied
            self._listener(name, False)
