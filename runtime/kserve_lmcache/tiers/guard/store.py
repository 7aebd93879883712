"""What a tier needs of its store, whichever it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from kserve_lmcache.tiers.guard.codec import Buffer


class StoreError(Exception):
    """The store did not do what it was asked for; it may be gone."""


class StoreFullError(StoreError):
    """The store takes no more, for want of room or of leave; it may still be read."""


class StoreTimeoutError(StoreError):
    """The store did not answer in time."""


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


class Store(Protocol):
    """A client of one store, used by one thread.

    Every method but :meth:`abort` may block, and raises :class:`StoreError`. How long it may
    take is not its own business (see :mod:`.lane`), although it should give up some time.
    """

    def ping(self) -> None:
        """Connect if need be, and get an answer."""

    def sizes(self, keys: Sequence[str]) -> list[int]:
        """Bytes of the value of each of ``keys``, in one round trip; 0 where there is none.

        A store that knows no sizes says 1 for what is there.
        """

    def read(self, keys: Sequence[str]) -> Iterator[Buffer | None]:
        """The values in the order of ``keys``, each as soon as it is there; ``None`` for none.

        May be closed before its end. A value may be overwritten when the next one is read.
        """

    def write(self, entries: Sequence[Entry]) -> None:
        """Write values, in one round trip if possible.

        Raises:
            StoreFullError: there is no room; some may have been written.
        """

    def keep(self, keys: Sequence[str]) -> None:
        """Let values that are there live on as if they had just been written."""

    def delete(self, keys: Sequence[str]) -> None:
        """Delete values that may be there, as far as the store can."""

    def abort(self) -> None:
        """Called by another thread: make a call that is under way fail soon."""

    def close(self) -> None:
        """Give back everything that is open."""
