"""Lists and deletes the chunks of a tier for a person, beside its lookups, loads and writes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

from kserve_lmcache.identity.tag import Selection, Tag, takes
from kserve_lmcache.tiers.changes import chunk_of
from kserve_lmcache.tiers.guard.bars import Takes
from kserve_lmcache.tiers.guard.deadline_executor import DeadlineExecutor
from kserve_lmcache.tiers.guard.listing import ListingStore, Usage
from kserve_lmcache.tiers.guard.store import CallKind, Store, StoreError
from kserve_lmcache.tiers.guard.writer import Writer

T = TypeVar("T")

SECONDS = 30.0  # of one call, which may go through a store with millions of keys
_ROUNDS = 3  # of a deletion; another replica may write meanwhile


class Steering:
    """One tier's. Every method but :meth:`close` raises StoreError where the store fails.

    Calls have a thread and a client of their own, made when they are first needed.

    Args:
        name: of the tier.
        make_store: makes a client.
        writer: of the tier.
    """

    def __init__(self, name: str, make_store: Callable[[CallKind], Store], writer: Writer) -> None:
        self._writer = writer
        self._executor = DeadlineExecutor(
            f"{name}-steering", functools.partial(make_store, "write")
        )

    def usage(self, worker: str, selection: Selection) -> dict[Tag, Usage]:
        """The chunks of a worker by their tags.

        Args:
            worker: what the keys of the worker begin with.
            selection: of the chunks.
        """

        def measure(store: Store) -> dict[Tag, Usage]:
            found: dict[Tag, Usage] = {}
            seen = set()
            for page in _listing(store).find(worker, selection, True):
                for value in page:
                    if value.name not in seen:
                        seen.add(value.name)
                        found.setdefault(value.tag, Usage()).add(value.size, value.age)
            return found

        return self._call(measure)

    def delete(self, worker: str, selection: Selection) -> int:
        """Delete a worker's chunks; they must be barred meanwhile. Returns their number.

        Raises:
            StoreError: the store fails, or chunks come again while they are deleted.
        """
        self._withdraw(functools.partial(takes, selection))

        def once(store: Store) -> int:
            pages = _listing(store).find(worker, selection, False)
            return sum(self._remove(store, [value.name for value in page]) for page in pages)

        deleted = self._until_gone(once)
        self._forget(functools.partial(takes, selection))
        return deleted

    def delete_keys(self, keys: Sequence[str]) -> int:
        """Delete chunks; they must be barred meanwhile. Returns their number.

        Raises:
            StoreError: the store fails, or keeps the chunks.
        """
        self._withdraw(frozenset(keys).__contains__)

        def once(store: Store) -> int:
            there = [key for key, size in zip(keys, store.sizes(keys), strict=True) if size]
            store.delete(there)
            self._writer.on_presence(there, False)
            return len(there)

        deleted = self._until_gone(once)
        self._forget(frozenset(map(chunk_of, keys)).__contains__)
        return deleted

    def trim(self, worker: str, selection: Selection, max_bytes: int) -> tuple[int, int]:
        """Delete the oldest of a worker's chunks, until the rest has few enough bytes.

        Returns:
            The number of the deleted chunks, and the bytes of the rest.
        """

        def trim(store: Store) -> tuple[int, int]:
            pages = _listing(store).find(worker, selection, True)
            values = {value.name: value for page in pages for value in page}
            left, oldest = sum(value.size for value in values.values()), []
            for value in sorted(values.values(), key=lambda value: -(value.age or 0.0)):
                if left <= max_bytes:
                    break
                oldest.append(value.name)
                left -= value.size
            return self._remove(store, oldest) if oldest else 0, left

        return self._call(trim)

    def hold(self, keys: Sequence[str], seconds: float) -> int:
        """Keep values at least so long. See :meth:`.ListingStore.hold`."""
        return self._call(lambda store: _listing(store).hold(keys, seconds))

    def close(self) -> None:
        """End the thread."""
        self._executor.close()

    def _withdraw(self, takes: Takes) -> None:
        if not self._writer.withdraw(takes, SECONDS):
            raise StoreError(f"a write takes longer than {SECONDS:g} s")

    def _remove(self, store: Store, names: Sequence[str]) -> int:
        """Delete values. In a store that other tiers share, the names are the keys."""
        removed = _listing(store).remove(names)
        self._writer.on_presence(names, False)
        return removed

    def _forget(self, selected: Takes) -> None:
        """Delete what a store keeps of chunks beside their values, which are gone."""

        def forget(store: Store) -> None:
            if isinstance(store, ListingStore):
                store.forget(selected)

        self._call(forget)

    def _until_gone(self, once: Callable[[Store], int]) -> int:
        """Delete, and look again until nothing is found."""
        deleted = 0
        for _ in range(_ROUNDS):
            count = self._call(once)
            if not count:
                return deleted
            deleted += count
        raise StoreError("chunks are still there: others write them meanwhile")

    def _call(self, operation: Callable[[Store], T]) -> T:
        return self._executor.call(operation, SECONDS)


def _listing(store: Store) -> ListingStore:
    if not isinstance(store, ListingStore):
        raise StoreError("this store cannot list its chunks")
    return store
