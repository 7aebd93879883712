"""The directory of the disk tier, which keeps its files below a bound."""

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

from kserve_lmcache.identity.tag import Tag, of_key, parse
from kserve_lmcache.tiers.disk.index import DiskIndex, File

logger = logging.getLogger(__name__)

SUFFIX = ".kv"
TEMPORARY = ".tmp"
_NAME = re.compile(r"[0-9a-f]{32}(?:-([0-9a-f.]+))?\.kv")
_TEMPORARY_NAME = re.compile(r"[0-9a-f]{32}(-[0-9a-f.]+)?\.kv\.\w+\.tmp")
# Seconds after which a temporary file is left over: longer than any write may take.
_ABANDONED = 60.0
# Seconds between two scans, and between two that are requested.
_PAUSE, _MIN_PAUSE = 10.0, 0.1
# The same as multiples of a scan's duration: scans take a hundredth of the time, or a tenth.
_PAUSE_FACTOR, _MIN_PAUSE_FACTOR = 100, 10
_YIELD = 200  # files, after which a scan lets other threads run


def file_name(key: str) -> str:
    """Returns the name of the file for a key's value.

    A key may be longer than a file name, and may hold characters that a file name may not. The
    checksum of a value would tell two keys with the same digest apart. The key's tag is in the
    name, so that the files of a tenant can be found.
    """
    digest, text = hashlib.blake2b(key.encode(), digest_size=16).hexdigest(), str(of_key(key) or "")
    return f"{digest}-{text}{SUFFIX}" if text else digest + SUFFIX


def tag_of_file(name: str) -> Tag | None:
    """Returns the tag in a file's name; ``None`` where the name is none of the tier's."""
    found = _NAME.fullmatch(name)
    return parse(found[1] or "") if found else None


class DiskDirectory:
    """The files of one directory, written by this process, by earlier ones and by other workers.

    A thread scans the directory at the start and about every ten seconds, since other workers of
    the engine may write there too. The bound therefore holds for all of them together, except
    for what the others have written since the last scan.

    Args:
        path: of the directory, which is created when it is first needed.
        max_bytes: disk space that all files together may occupy.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.index = DiskIndex()
        self.evicted = 0
        self.is_scanned = threading.Event()
        self._scan_requested = threading.Event()
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="disk-scan", daemon=True).start()

    def file_path(self, name: str) -> str:
        """Returns the path of a file."""
        return os.path.join(self.path, name)  # noqa: PTH118 (faster, and called for each chunk)

    def create(self) -> None:
        """Creates the directory where it is missing.

        Raises:
            OSError: the directory cannot be created.
        """
        self.path.mkdir(0o700, parents=True, exist_ok=True)

    def stat_size(self, name: str) -> int:
        """Returns a file's size in bytes, read from the file system; 0 where it is missing.

        Raises:
            OSError: the directory cannot be read.
        """
        try:
            state = os.lstat(self.file_path(name))
        except FileNotFoundError:
            self.index.discard(name)
            return 0
        if not stat.S_ISREG(state.st_mode):
            return 0
        self.index.add(name, File(state.st_size, state.st_mtime_ns))
        return state.st_size

    def make_room(self, size: int) -> None:
        """Evicts files until a new one of ``size`` bytes fits into the bound.

        Raises:
            OSError: a file cannot be removed.
        """
        size = File(size, 0).occupied
        while self.index.occupied + size > self.max_bytes and self._evict():
            pass

    def evict(self, size: int) -> bool:
        """Evicts files of ``size`` bytes, for a disk that is full. Returns whether there were any.

        Raises:
            OSError: a file cannot be removed.
        """
        freed = 0
        while freed < size and (file := self._evict()) is not None:
            freed += file.occupied
        return freed > 0

    def report_missing(self, name: str) -> None:
        """Removes a missing file from the index, and requests a scan: others may be missing too."""
        self.index.discard(name)
        self._scan_requested.set()

    def report(self) -> dict[str, int]:
        """Returns sizes and counts, as plain values."""
        return {
            "used_bytes": self.index.occupied,
            "capacity_bytes": self.max_bytes,
            "files": len(self.index),
            "evictions": self.evicted,
        }

    def close(self) -> None:
        """Ends the scans."""
        self._closed.set()
        self._scan_requested.set()

    def _evict(self) -> File | None:
        oldest = self.index.take_oldest()
        if oldest is None:
            return None
        name, file = oldest
        try:
            os.unlink(self.file_path(name))  # noqa: PTH108
        except FileNotFoundError:  # another worker evicted the file, and may have written others
            self._scan_requested.set()
        except OSError:
            self.index.add(name, file)
            raise
        self.evicted += 1
        return file

    def _run(self) -> None:
        logged = ""
        while not self._closed.is_set():
            began = time.monotonic()
            try:
                self._scan()
                logged = ""
            except OSError as error:
                reason = error.strerror or str(error)
                if reason != logged:
                    logged = reason
                    logger.warning("The disk tier's directory %s fails: %s", self.path, reason)
            seconds = time.monotonic() - began
            self._closed.wait(max(_MIN_PAUSE, _MIN_PAUSE_FACTOR * seconds))
            self._scan_requested.wait(max(_PAUSE, _PAUSE_FACTOR * seconds))
            self._scan_requested.clear()

    def _scan(self) -> None:
        """Reads the directory into the index, removes leftovers, and enforces the bound."""
        self.index.begin_scan()
        self.index.end_scan(dict(self.files()))
        self.is_scanned.set()
        self.make_room(0)

    def files(self) -> Iterator[tuple[str, File]]:
        """Yields the files of the directory, read from the file system. Removes leftovers.

        Raises:
            OSError: the directory cannot be read.
        """
        try:
            entries = os.scandir(self.path)
        except FileNotFoundError:
            return
        with entries:
            for number, entry in enumerate(entries, 1):
                if number % _YIELD == 0:
                    time.sleep(0.001)
                with contextlib.suppress(FileNotFoundError):
                    if _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        state = entry.stat(follow_symlinks=False)
                        yield entry.name, File(state.st_size, state.st_mtime_ns)
                    elif _TEMPORARY_NAME.fullmatch(entry.name):
                        age = time.time() - entry.stat(follow_symlinks=False).st_mtime
                        if age > _ABANDONED:
                            with contextlib.suppress(OSError):  # read-only, or another user's
                                os.unlink(entry.path)  # noqa: PTH108
