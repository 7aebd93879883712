"""A router: it sends a prompt to the replica that has the longest prefix, by their events."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from tests.support.event_readers import Reader, reading


class Picker:
    """Chooses among replicas. Replicas with prefixes of equal length take turns.

    Args:
        readers: of each replica's events.
        block_size: the tokens of a block.
    """

    def __init__(self, readers: Sequence[Reader], block_size: int) -> None:
        self._readers = readers
        self._block_size = block_size
        self._turns = itertools.count()

    def choose(self, prompt: Sequence[int], salt: str = "") -> int:
        """The number of a replica."""
        count, turn = len(self._readers), next(self._turns)
        order = [(turn + number) % count for number in range(count)]
        return max(order, key=lambda one: self.found(one, prompt, salt))

    def found(self, replica: int, prompt: Sequence[int], salt: str = "") -> int:
        """The tokens of a prompt that a replica has."""
        return self._readers[replica].tokens(prompt, self._block_size, salt)


@contextmanager
def picker(endpoints: Sequence[tuple[str, str]], block_size: int) -> Iterator[Picker]:
    """A picker for a while.

    Args:
        endpoints: of the replicas: of their events, and of their replays.
        block_size: the tokens of a block.
    """
    with ExitStack() as stack:
        readers = [stack.enter_context(reading(*each)) for each in endpoints]
        for reader in readers:
            reader.catch_up()
        yield Picker(readers, block_size)
