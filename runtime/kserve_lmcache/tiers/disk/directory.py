"""The directory of the disk tier: never larger than it may be, whoever writes to it."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from kserve_lmcache.tiers.disk.index import DiskIndex, File

logger = logging.getLogger(__name__)

SUFFIX = ".kv"
TEMPORARY = ".tmp"
_NAME = re.compile(r"[0-9a-f]{32}\.kv")
_TEMPORARY_NAME = re.compile(r"[0-9a-f]{32}\.kv\.\w+\.tmp")
# Seconds after which nobody writes to a temporary file any more; longer than any write may take.
_ABANDONED = 60.0
# Seconds from one count to the next, and from one to the next that somebody wants.
_PAUSE, _SHORTEST_PAUSE = 10.0, 0.1
# The same as multiples of what a count takes: a hundredth of the time is spent on them, or a tenth.
_USUAL, _LEAST = 100, 10
_BREATH = 200  # files, after which other threads are let through


def name_of(key: str) -> str:
    """The name of a value's file.

    A key is longer than a name may be, and holds characters that no name may. Two keys with the
    same digest would be told apart by the value's checksum.
    """
    return hashlib.blake2b(key.encode(), digest_size=16).hexdigest() + SUFFIX


class DiskDirectory:
    """The files of this process's lanes, of earlier processes and of those beside it.

    They are counted when it is made, in the background, and every ten seconds or so: others
    may write there, as the workers of one engine do. So the bound holds for all together, except
    for what the others wrote since this process has counted.

    Args:
        path: of the directory; made when it is first needed.
        max_bytes: that all files may take from the disk.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.index = DiskIndex()
        self.evicted = 0
        self.is_counted = threading.Event()
        self._wanted = threading.Event()
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="disk-count", daemon=True).start()

    def file(self, name: str) -> str:
        """The path of a file."""
        return os.path.join(self.path, name)  # noqa: PTH118 (some µs less, for each chunk)

    def make(self) -> None:
        """Make the directory, where it is not there.

        Raises:
            OSError: it cannot be made.
        """
        self.path.mkdir(0o700, parents=True, exist_ok=True)

    def look(self, name: str) -> int:
        """Bytes of a file in the directory itself; 0 where there is none.

        Raises:
            OSError: the directory cannot be read.
        """
        try:
            state = os.lstat(self.file(name))
        except FileNotFoundError:
            self.index.discard(name)
            return 0
        if not stat.S_ISREG(state.st_mode):
            return 0
        self.index.add(name, File(state.st_size, state.st_mtime_ns))
        return state.st_size

    def make_room(self, size: int) -> None:
        """Evict as many files as a new one of ``size`` bytes needs.

        Raises:
            OSError: they cannot be removed.
        """
        size = File(size, 0).occupied
        while self.index.occupied + size > self.max_bytes and self._evict():
            pass

    def give_back(self, size: int) -> bool:
        """Evict files of ``size`` bytes, since the disk is full; whether there were any.

        Raises:
            OSError: they cannot be removed.
        """
        freed = 0
        while freed < size and (file := self._evict()) is not None:
            freed += file.occupied
        return freed > 0

    def lost(self, name: str) -> None:
        """A file that should be there is not: somebody has removed it, and perhaps all others."""
        self.index.discard(name)
        self._wanted.set()

    def report(self) -> dict[str, int]:
        """Sizes and counts, as plain values."""
        return {
            "used_bytes": self.index.occupied,
            "capacity_bytes": self.max_bytes,
            "files": len(self.index),
            "evictions": self.evicted,
        }

    def close(self) -> None:
        """Count no more."""
        self._closed.set()
        self._wanted.set()

    def _evict(self) -> File | None:
        oldest = self.index.take_oldest()
        if oldest is None:
            return None
        name, file = oldest
        try:
            os.unlink(self.file(name))  # noqa: PTH108
        except FileNotFoundError:  # others evict too, and what they wrote is not known here
            self._wanted.set()
        except OSError:
            self.index.add(name, file)
            raise
        self.evicted += 1
        return file

    def _run(self) -> None:
        said = ""
        while not self._closed.is_set():
            began = time.monotonic()
            try:
                self._count()
                said = ""
            except OSError as error:
                reason = error.strerror or str(error)
                if reason != said:
                    said = reason
                    logger.warning("What %s holds cannot be counted: %s", self.path, reason)
            seconds = time.monotonic() - began
            self._closed.wait(max(_SHORTEST_PAUSE, _LEAST * seconds))
            self._wanted.wait(max(_PAUSE, _USUAL * seconds))
            self._wanted.clear()

    def _count(self) -> None:
        """Take over what is there, without what nobody will ever finish; keep to the bound."""
        self.index.begin_count()
        self.index.end_count(dict(self._files()))
        self.is_counted.set()
        self.make_room(0)

    def _files(self) -> Iterator[tuple[str, File]]:
        try:
            entries = os.scandir(self.path)
        except FileNotFoundError:
            return
        with entries:
            for number, entry in enumerate(entries, 1):
                if number % _BREATH == 0:
                    time.sleep(0.001)
                with contextlib.suppress(FileNotFoundError):
                    if _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        state = entry.stat(follow_symlinks=False)
                        yield entry.name, File(state.st_size, state.st_mtime_ns)
                    elif _TEMPORARY_NAME.fullmatch(entry.name):
                        self._clear_away(entry)

    @staticmethod
    def _clear_away(temporary: os.DirEntry[str]) -> None:
        age = time.time() - temporary.stat(follow_symlinks=False).st_mtime
        if age > _ABANDONED:
            with contextlib.suppress(OSError):  # read-only, or another user's
                os.unlink(temporary.path)  # noqa: PTH108
