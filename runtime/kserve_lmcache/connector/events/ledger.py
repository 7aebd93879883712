"""The ledger: which chunks each tier has, in all workers of an engine."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kserve_lmcache.connector.events.chunks import BlockHash, Chunk

# Chunks that no tier has, and whose hashes are kept: they are about to be stored.
_LOOSE = 20_000
# Ways in which a chunk is announced: an adapter has several names, and chunks are keyed by its
# content.
_MOST_VARIANTS = 8


@dataclass(frozen=True)
class Change:
    """A tier has a chunk from now on, or no longer."""

    tier: str
    name: str
    chunk: Chunk
    present: bool


class Ledger:
    """Knows what each tier holds. A tier holds what all workers hold: a load needs them all.

    Changes and chunks may come in any order. Used by one thread.

    Args:
        workers: the number of workers.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._chunks: dict[str, dict[BlockHash, Chunk]] = {}
        self._loose: OrderedDict[str, None] = OrderedDict()
        self._ranks: dict[str, dict[str, set[int]]] = {}  # by chunk and tier
        # Of workers that tell all anew: tiers and chunks that they have not told again.
        self._doubtful: dict[int, set[tuple[str, str]]] = {}
        self.most_loose = _LOOSE

    def knows(self, name: str, last: BlockHash) -> bool:
        """Whether a chunk was learned with this hash of its last block."""
        if name in self._loose:
            self._loose.move_to_end(name)
        return last in self._chunks.get(name, ())

    def learn(self, name: str, chunk: Chunk) -> Iterator[Change]:
        """Take the hashes of a chunk. The result must be consumed."""
        known = self._chunks.setdefault(name, {})
        if name not in self._ranks:
            self._loose[name] = None
            self._loose.move_to_end(name)
            while len(self._loose) > self.most_loose:
                del self._chunks[self._loose.popitem(last=False)[0]]
        if chunk.name in known or len(known) >= _MOST_VARIANTS:
            return
        known[chunk.name] = chunk
        for tier in self._tiers_of(name):
            yield Change(tier, name, chunk, present=True)

    def note(self, rank: int, tier: str, name: str, present: bool) -> Iterator[Change]:
        """Take a change in a worker. The result must be consumed."""
        self._doubtful.get(rank, set()).discard((tier, name))
        held = tier in self._tiers_of(name)
        if present:
            self._ranks.setdefault(name, {}).setdefault(tier, set()).add(rank)
            self._loose.pop(name, None)
        elif name in self._ranks:
            self._remove(rank, tier, name)
        if (now := tier in self._tiers_of(name)) != held:
            for chunk in self._chunks.get(name, {}).values():
                yield Change(tier, name, chunk, now)

    def begin(self, rank: int) -> None:
        """A worker tells all that its tiers have, until :meth:`end`."""
        self._doubtful[rank] = {
            (tier, name)
            for name, tiers in self._ranks.items()
            for tier, ranks in tiers.items()
            if rank in ranks
        }

    def end(self, rank: int) -> Iterator[Change]:
        """A worker has told all: the rest is gone. The result must be consumed."""
        for tier, name in self._doubtful.pop(rank, ()):
            yield from self.note(rank, tier, name, present=False)

    def all(self) -> Iterator[Change]:
        """All that the tiers hold."""
        for name in self._ranks:
            for tier in self._tiers_of(name):
                for chunk in self._chunks.get(name, {}).values():
                    yield Change(tier, name, chunk, present=True)

    def held(self, tier: str) -> set[str]:
        """The names of the chunks that a tier holds."""
        return {name for name in self._ranks if tier in self._tiers_of(name)}

    def _tiers_of(self, name: str) -> list[str]:
        ranks = self._ranks.get(name, {})
        return [tier for tier, those in ranks.items() if len(those) == self._workers]

    def _remove(self, rank: int, tier: str, name: str) -> None:
        tiers = self._ranks[name]
        ranks = tiers.get(tier, set())
        ranks.discard(rank)
        if not ranks:
            tiers.pop(tier, None)
        if not tiers:
            del self._ranks[name]
            if name in self._chunks:
                self._loose[name] = None


class Announcements:
    """Leaves out changes that change nothing for a reader, who knows vLLM's hashes alone.

    Two chunks may have the same hashes: two adapters that had one name and one path in turn.
    """

    def __init__(self) -> None:
        self._count: Counter[tuple[str, BlockHash]] = Counter()

    def of(self, changes: Iterable[Change]) -> Iterator[Change]:
        """The changes to announce."""
        for change in changes:
            place = (change.tier, change.chunk.name)
            self._count[place] += 1 if change.present else -1
            if self._count[place] == int(change.present):
                yield change
            if not self._count[place]:
                del self._count[place]
