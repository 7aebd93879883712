"""The protocol that every store of a tier implements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from kserve_lmcache.tiers.guard.codec import Buffer

# Each kind of call has a client and a thread of its own, so that a long write delays no lookup.
CallKind = Literal["lookup", "load", "write"]


class StoreError(Exception):
    """A call to the store failed. The store may be unreachable."""


class StoreFullError(StoreError):
    """The store refuses writes, because it is full or read-only. It may still be read."""


class StoreTimeoutError(StoreError):
    """The store did not answer before the deadline."""


@dataclass(frozen=True)
class Entry:
    """A value to be written: its header, and its payload in the engine's memory."""

    key: str
    header: bytes
    payload: Buffer

    @property
    def size(self) -> int:
        """Bytes of the whole value."""
        return len(self.header) + len(self.payload)


@dataclass(frozen=True)
class ValueStream:
    """A value that is being read.

    Attributes:
        size: bytes of the whole value.
        pieces: of the value, one after the other. The first has :data:`.codec.MAX_HEADER` bytes
            at least, or all. A piece is valid until the next one is read. Reading one raises
            :class:`StoreError`, and :class:`.codec.CorruptValueError` where the value is damaged.
    """

    size: int
    pieces: Iterator[Buffer]

    def whole(self) -> bytes:
        """Returns all that has not been read yet."""
        return b"".join(map(bytes, self.pieces))


# Bytes of a piece. It is received, hashed and copied while it is in the processor's cache.
PIECE = 256 * 1024


def in_memory(value: Buffer) -> ValueStream:
    """A value that is in this process already."""
    view = memoryview(value)
    begins = range(0, len(view), PIECE)
    return ValueStream(len(view), (view[begin : begin + PIECE] for begin in begins))


class Store(Protocol):
    """A client of one store, used by one thread.

    Every method but :meth:`abort` may block and raises :class:`StoreError`. The deadlines are
    kept elsewhere (:mod:`.deadline_executor`), but every method must end some time.
    """

    def ping(self) -> None:
        """Connects where necessary, and waits for an answer."""

    def sizes(self, keys: Sequence[str]) -> list[int]:
        """Returns the size in bytes of each key's value, in one round trip; 0 where it is missing.

        A store that does not know sizes returns 1 for a value that exists.
        """

    def read(self, keys: Sequence[str]) -> Iterator[ValueStream | None]:
        """Yields the values in the order of ``keys``, each once it arrives.

        A missing value is ``None``. The caller may close the iterator early. A value can be read
        until the next one is asked for.
        """

    def write(self, entries: Sequence[Entry]) -> None:
        """Writes values, in one round trip if possible.

        Raises:
            StoreFullError: the store is full. Some of the values may have been written.
        """

    def keep(self, keys: Sequence[str]) -> None:
        """Restarts the time to live of existing values."""

    def delete(self, keys: Sequence[str]) -> None:
        """Deletes values, where the store can. Missing values are ignored."""

    def abort(self) -> None:
        """Makes a running call fail soon. Called by another thread."""

    def close(self) -> None:
        """Closes all connections and files."""
