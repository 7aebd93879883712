"""A store in a directory: one file for every value."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

from kserve_lmcache.identity.tag import EVERYTHING, Selection, Tag
from kserve_lmcache.tiers.disk import journal
from kserve_lmcache.tiers.disk.directory import TEMPORARY, DiskDirectory, file_name, tag_of_file
from kserve_lmcache.tiers.disk.index import File
from kserve_lmcache.tiers.guard.codec import Buffer, CorruptValueError
from kserve_lmcache.tiers.guard.listing import Stored
from kserve_lmcache.tiers.guard.store import (
    PIECE,
    CallKind,
    Entry,
    StoreError,
    StoreFullError,
    ValueStream,
)

_FULL = (errno.ENOSPC, errno.EDQUOT)
# The files can still be read, so the breaker stays closed after one of these.
_UNWRITABLE = (*_FULL, errno.EROFS, errno.EACCES, errno.EPERM)
# One file is damaged: a disk has lost single sectors, or the file system checks its content.
_UNREADABLE = (errno.EIO, errno.EBADMSG, errno.EUCLEAN)
_TRIES = 4  # to write a value, while others fill the disk or remove the directory
_HELD_SHARE = 0.5  # of the bound
_SCAN_SECONDS = 1.0  # that a write waits for the first scan


@contextlib.contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind = StoreFullError if error.errno in _UNWRITABLE else StoreError
        raise kind(error.strerror or f"{type(error).__name__}: {error}") from error


class DiskStore:
    """A client of the directory. Implements :class:`~kserve_lmcache.tiers.guard.store.Store`.

    A value is written to a temporary file, which is then renamed, so that nobody reads half of
    it. Files are not synced: the checksum finds those that a power failure damages.

    Args:
        directory: shared by all clients.
        kind: of the calls. A lookup trusts the index, and ends at the first missing value.
    """

    def __init__(self, directory: DiskDirectory, kind: CallKind) -> None:
        self._directory = directory
        self._is_lookup = kind == "lookup"
        self._buffer = memoryview(bytearray(PIECE))

    @_store_errors()
    def ping(self) -> None:
        """Creates the directory where it is missing, and reads it."""
        self._directory.create()
        with os.scandir(self._directory.path) as entries:
            next(entries, None)

    @_store_errors()
    def sizes(self, keys: Sequence[str]) -> list[int]:
        """Returns the sizes; 0 for a missing value."""
        if not self._is_lookup:
            return [self._directory.stat_size(file_name(key)) for key in keys]
        sizes = [0] * len(keys)
        found = []
        for position, key in enumerate(keys):
            name = file_name(key)
            # Another worker may have written the file since the last scan.
            size = self._directory.index.size_of(name) or self._directory.stat_size(name)
            if size == 0:
                break
            sizes[position] = size
            found.append(name)
        self._directory.index.use(found)  # so that no file is evicted before it is loaded
        return sizes

    def read(self, keys: Sequence[str]) -> Iterator[ValueStream | None]:
        """Yields the values. Of a file that is larger than it says, the beginning alone is read."""
        for key in keys:
            name = file_name(key)
            if (handle := self._open(name)) is None:
                yield None
                continue
            try:
                yield ValueStream(self._size(handle), self._pieces(handle))
            finally:
                os.close(handle)

    @_store_errors()
    def write(self, entries: Sequence[Entry]) -> None:
        """Writes the values. The least recently used files make room for them."""
        if not self._directory.is_scanned.wait(_SCAN_SECONDS):
            raise StoreFullError("the first scan of the directory is still running")
        now = time.time_ns()
        for number, entry in enumerate(entries):
            # A prompt's first chunk is evicted last: the others are useless without it.
            self._write(entry, now - number)

    def keep(self, keys: Sequence[str]) -> None:
        """Records the use of the values in the files too, for the next process."""
        names = [file_name(key) for key in keys]
        self._directory.index.use(names)
        now = time.time_ns()
        for number, name in enumerate(names):
            try:
                os.utime(self._directory.file_path(name), ns=(now - number, now - number))
            except FileNotFoundError:
                self._directory.report_missing(name)
            except OSError:  # read-only, or another user's
                return

    def delete(self, keys: Sequence[str]) -> None:
        """Deletes the values that can be deleted."""
        for key in keys:
            name = file_name(key)
            try:
                os.unlink(self._directory.file_path(name))  # noqa: PTH108
            except FileNotFoundError:
                pass
            except OSError:  # read-only, or another user's
                continue
            self._directory.index.discard(name)

    def find(self, worker: str, selection: Selection, measure: bool) -> Iterator[list[Stored]]:
        """Yields all files of the directory, other workers' included: names have no worker."""
        now = time.time_ns()
        found = []
        with _store_errors():
            for name, file in self._directory.files():
                tag = tag_of_file(name)
                if (tag in selection) if tag is not None else selection == EVERYTHING:
                    age = max(0.0, (now - self._directory.index.used(name, file)) / 1e9)
                    found.append(Stored(name, tag or Tag(), file.size, age))
        yield found

    @_store_errors()
    def remove(self, names: Sequence[str]) -> int:
        """Deletes files."""
        removed = 0
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._directory.file_path(name))  # noqa: PTH108
                removed += 1
            self._directory.index.discard(name)
        return removed

    @_store_errors()
    def forget(self, selected: Callable[[str], bool]) -> None:
        """Deletes chunks from all journals of the directory, those of other models included."""
        journal.forget(self._directory.path, selected)

    @_store_errors()
    def hold(self, keys: Sequence[str], seconds: float) -> int:
        """Keeps files from being evicted by this worker; half of the bound at most."""
        names = [name for key in keys if self._directory.stat_size(name := file_name(key))]
        most = int(_HELD_SHARE * self._directory.max_bytes)
        if not self._directory.index.hold(names, seconds, most):
            raise StoreFullError(f"no more than {most} bytes may be held")
        return len(names)

    def abort(self) -> None:
        """Does nothing: a file system's call cannot be interrupted."""

    def close(self) -> None:
        """Does nothing: no file stays open."""

    @_store_errors()
    def _open(self, name: str) -> int | None:
        try:
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
            return os.open(self._directory.file_path(name), flags)
        except FileNotFoundError:
            self._directory.report_missing(name)
            return None

    @_store_errors()
    def _size(self, handle: int) -> int:
        return os.fstat(handle).st_size

    def _pieces(self, handle: int) -> Iterator[Buffer]:
        while piece := self._piece(handle):
            yield piece

    @_store_errors()
    def _piece(self, handle: int) -> memoryview:
        done = 0
        try:
            while done < PIECE and (count := os.readv(handle, [self._buffer[done:]])):
                done += count
        except OSError as error:
            if error.errno in _UNREADABLE:  # the value is deleted and written again
                raise CorruptValueError(f"the file: {error.strerror}") from error
            raise
        return self._buffer[:done]

    def _write(self, entry: Entry, used: int) -> None:
        if File(entry.size, 0).occupied > self._directory.max_bytes:
            raise StoreFullError(f"a chunk of {entry.size} bytes exceeds max_local_disk_size")
        for attempt in range(1, _TRIES + 1):
            try:
                return self._write_once(entry, used)
            except FileNotFoundError:
                if attempt == _TRIES:
                    raise
                self._directory.create()
            except OSError as error:
                # Other programs fill the disk: the tier keeps as many chunks as fit beside them.
                if error.errno not in _FULL or attempt == _TRIES:
                    raise
                if not self._directory.evict(attempt * entry.size):
                    raise

    def _write_once(self, entry: Entry, used: int) -> None:
        name = file_name(entry.key)
        self._directory.make_room(entry.size)
        # mkstemp chooses a unique name and mode 0600.
        handle, temporary = tempfile.mkstemp(TEMPORARY, f"{name}.", self._directory.path)
        try:
            try:
                for part in (entry.header, entry.payload):
                    view = memoryview(part)
                    while view:
                        view = view[os.write(handle, view) :]
                os.utime(handle, ns=(used, used))
            finally:
                os.close(handle)
            os.replace(temporary, self._directory.file_path(name))  # noqa: PTH105
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108
            raise
        self._directory.index.add(name, File(entry.size, used))
