"""A store on a disk of this machine: a file for every value."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from kserve_lmcache.tiers.disk.directory import TEMPORARY, DiskDirectory, name_of
from kserve_lmcache.tiers.disk.index import File
from kserve_lmcache.tiers.guard.codec import Buffer
from kserve_lmcache.tiers.guard.store import Entry, StoreError, StoreFullError

_FULL = (errno.ENOSPC, errno.EDQUOT)
# What is there can still be read, so that the disk is not given up for these.
_TAKES_NOTHING = (*_FULL, errno.EROFS, errno.EACCES, errno.EPERM)
# One file is damaged: on a disk whose sectors fail singly, or a file system that checks itself.
_UNREADABLE = (errno.EIO, errno.EBADMSG, errno.EUCLEAN)
_TRIES = 4  # to write a value, while others fill the disk or remove the directory
_COUNTING = 1.0  # seconds to wait for the first count before a write is given up

F = TypeVar("F", bound=Callable[..., Any])


def _as_store_errors(method: F) -> F:
    @functools.wraps(method)
    def wrapped(self: DiskStore, *args: Any) -> Any:
        try:
            return method(self, *args)
        except OSError as error:
            kind = StoreFullError if error.errno in _TAKES_NOTHING else StoreError
            raise kind(_reason(error)) from error

    return wrapped  # type: ignore[return-value]


class DiskStore:
    """The files as one lane sees them; see :class:`~kserve_lmcache.tiers.guard.store.Store`.

    A value is written beside its place and renamed, so that nobody reads half of one. Nothing is
    forced to the disk: what a power failure tears, the checksum finds.

    Args:
        directory: of all lanes.
        largest: bytes of a value; a larger file is damaged.
        lane: whose calls it serves. For lookups, what is known to be there is not looked at, and
            what follows the first value that is not there is not looked for.
    """

    def __init__(self, directory: DiskDirectory, largest: int, lane: str) -> None:
        self._directory = directory
        self._largest = largest
        self._is_lookup = lane == "lookup"
        self._buffer = memoryview(bytearray())

    @_as_store_errors
    def ping(self) -> None:
        """Make the directory if need be, and look into it."""
        self._directory.make()
        with os.scandir(self._directory.path) as entries:
            next(entries, None)

    @_as_store_errors
    def sizes(self, keys: Sequence[str]) -> list[int]:
        """Bytes of each value; 0 where there is none."""
        if not self._is_lookup:
            return [self._directory.look(name_of(key)) for key in keys]
        sizes = [0] * len(keys)
        found = []
        for position, key in enumerate(keys):
            name = name_of(key)
            # Another worker, or an earlier one, may have written it since the last count.
            size = self._directory.index.size_of(name) or self._directory.look(name)
            if size == 0:
                break
            sizes[position] = size
            found.append(name)
        self._directory.index.use(found)  # they are about to be read, and stay until then
        return sizes

    def read(self, keys: Sequence[str]) -> Iterator[Buffer | None]:
        """The values, each until the next is read."""
        for key in keys:
            yield self._read(name_of(key))

    @_as_store_errors
    def write(self, entries: Sequence[Entry]) -> None:
        """Write the values; those that were used longest ago make room for them."""
        if not self._directory.is_counted.wait(_COUNTING):
            raise StoreFullError("what is there is still being counted")
        now = time.time_ns()
        for number, entry in enumerate(entries):
            # The first is the one without which the others are of no use.
            self._write(entry, now - number)

    def keep(self, keys: Sequence[str]) -> None:
        """Note in the files too that they were used, for the next process; or do not."""
        names = [name_of(key) for key in keys]
        self._directory.index.use(names)
        now = time.time_ns()
        for number, name in enumerate(names):
            try:
                os.utime(self._directory.file(name), ns=(now - number, now - number))
            except FileNotFoundError:
                self._directory.lost(name)
            except OSError:  # read-only, or another user's
                return

    def delete(self, keys: Sequence[str]) -> None:
        """Delete the values, as far as that is possible."""
        for key in keys:
            name = name_of(key)
            try:
                os.unlink(self._directory.file(name))  # noqa: PTH108
            except FileNotFoundError:
                pass
            except OSError:  # read-only, or another user's
                continue
            self._directory.index.discard(name)

    def abort(self) -> None:
        """Nothing: no call of a file system can be woken."""

    def close(self) -> None:
        """Nothing is open."""

    @_as_store_errors
    def _read(self, name: str) -> Buffer | None:
        try:
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
            handle = os.open(self._directory.file(name), flags)
        except FileNotFoundError:
            self._directory.lost(name)
            return None
        try:
            return self._content(handle)
        except OSError as error:
            if error.errno in _UNREADABLE:
                return b""  # there and not what was stored: it is to be replaced
            raise
        finally:
            os.close(handle)

    def _content(self, handle: int) -> Buffer:
        size = os.fstat(handle).st_size
        if size > self._largest:
            return b""
        if len(self._buffer) < size:
            self._buffer = memoryview(bytearray(size))
        done = 0
        while done < size and (count := os.readv(handle, [self._buffer[done:size]])):
            done += count
        return self._buffer[:done]

    def _write(self, entry: Entry, used: int) -> None:
        if File(entry.size, 0).occupied > self._directory.max_bytes:
            raise StoreFullError(f"a chunk of {entry.size} bytes is more than all may take")
        for attempt in range(1, _TRIES + 1):
            try:
                return self._write_once(entry, used)
            except FileNotFoundError:
                if attempt == _TRIES:
                    raise
                self._directory.make()
            except OSError as error:
                # Full of other things, the disk keeps as many chunks as there is room for.
                if error.errno not in _FULL or attempt == _TRIES:
                    raise
                if not self._directory.give_back(attempt * entry.size):
                    raise

    def _write_once(self, entry: Entry, used: int) -> None:
        name = name_of(entry.key)
        self._directory.make_room(entry.size)
        # Mode 0600, and a name that nobody else has.
        handle, temporary = tempfile.mkstemp(TEMPORARY, f"{name}.", self._directory.path)
        try:
            try:
                for part in (entry.header, entry.payload):
                    _write_all(handle, part)
                os.utime(handle, ns=(used, used))
            finally:
                os.close(handle)
            os.replace(temporary, self._directory.file(name))  # noqa: PTH105
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108
            raise
        self._directory.index.add(name, File(entry.size, used))


def _write_all(handle: int, content: Buffer) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(handle, view) :]


def _reason(error: OSError) -> str:
    return error.strerror or f"{type(error).__name__}: {error}"
