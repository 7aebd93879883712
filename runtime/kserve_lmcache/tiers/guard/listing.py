"""What a store can do that lists its chunks: count them and delete them by their tags."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from kserve_lmcache.identity.tag import Selection, Tag


@dataclass(frozen=True)
class Stored:
    """A value in a store.

    Attributes:
        name: by which the store deletes the value.
        tag: of the chunk.
        size: in bytes; 0 where it was not asked for.
        age: seconds since the value was written or used; ``None`` where that is not known.
    """

    name: str
    tag: Tag
    size: int = 0
    age: float | None = None


@dataclass
class Usage:
    """The chunks with one tag in a tier.

    Attributes:
        chunks: their number.
        bytes: of all of them.
        oldest: the age of the oldest, in seconds; ``None`` where that is not known.
    """

    chunks: int = 0
    bytes: int = 0
    oldest: float | None = None

    def add(self, size: int, age: float | None) -> None:
        """Count one more chunk."""
        self.merge(Usage(1, size, age))

    def merge(self, other: Usage) -> None:
        """Count the chunks of another usage too."""
        self.chunks += other.chunks
        self.bytes += other.bytes
        if other.oldest is not None:
            self.oldest = max(self.oldest or 0.0, other.oldest)


@runtime_checkable
class ListingStore(Protocol):
    """A store whose content can be listed. Its methods raise as those of ``Store``."""

    def find(self, worker: str, selection: Selection, measure: bool) -> Iterator[Sequence[Stored]]:
        """Yields the values of one worker's chunks, some at a time. One may come twice.

        Args:
            worker: what the keys of the worker begin with.
            selection: of the chunks.
            measure: whether sizes and ages are wanted.
        """

    def remove(self, names: Sequence[str]) -> int:
        """Deletes values. Returns the number of those that were there.

        Raises:
            StoreError: a value cannot be deleted.
        """

    def forget(self, selected: Callable[[str], bool]) -> None:
        """Deletes what is kept of chunks beside their values.

        Args:
            selected: takes the name of a chunk (:func:`kserve_lmcache.tiers.changes.chunk_of`),
                and returns whether the chunk has been deleted.

        Raises:
            StoreError: something cannot be deleted.
        """

    def hold(self, keys: Sequence[str], seconds: float) -> int:
        """Keeps values at least so long, as far as the store can.

        Returns the number of those that are there.

        Args:
            keys: of the values.
            seconds: from now on; with 0 the values are like others again.

        Raises:
            StoreFullError: no more may be held.
        """
