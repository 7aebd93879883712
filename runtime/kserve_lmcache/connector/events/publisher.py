"""The publisher of the events of vLLM and of ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from kserve_lmcache.compat.vllm_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KVEventBatch,
    Publisher,
    removed,
    stored,
)
from kserve_lmcache.connector.events.chunks import BlockHash
from kserve_lmcache.connector.events.ledger import Change

_BATCH = 500  # events of a snapshot that are sent together
# A snapshot may fill this share of the batches that are kept for replays.
_SNAPSHOT_SHARE = 0.25
# Batches below which nothing is told anew.
_FEWEST = 16

# Of each tier: the medium and the locality of its events. VLLM's own storage on the network has the
# medium of a disk. Readers weigh blocks by their medium alone, and vLLM 0.24 has no locality.
MEDIA = {"local": ("CPU", "LOCAL"), "disk": ("STORAGE", "LOCAL"), "remote": ("REMOTE", "REMOTE")}
_ENGINE = (None, "GPU")  # media of the engine's own blocks

_Place = tuple[str | None, str | None, int | None, BlockHash]


class Mirror:
    """What a reader of all events knows: blocks by medium, locality, group and hash."""

    def __init__(self) -> None:
        self._blocks: dict[_Place, BlockStored] = {}  # an event of one block each

    def apply(self, event: Any) -> None:
        """Take an event that was sent."""
        if isinstance(event, BlockStored):
            for block in _single_blocks(event):
                self._blocks.setdefault(_place(block, block.block_hashes[0]), block)
        elif isinstance(event, BlockRemoved):
            for name in event.block_hashes:
                self._blocks.pop(_place(event, name), None)
        elif isinstance(event, AllBlocksCleared):
            self._blocks.clear()

    def clear_engine(self) -> None:
        """Forget the engine's own blocks."""
        self._blocks = {
            place: block for place, block in self._blocks.items() if place[0] not in _ENGINE
        }

    def snapshot(self) -> Iterator[BlockStored]:
        """An event for each block, parents first."""
        by_hash: dict[BlockHash, list[BlockStored]] = {}
        for place, block in self._blocks.items():
            by_hash.setdefault(place[-1], []).append(block)
        seen: set[BlockHash] = set()
        for name in by_hash:
            path, each = [], name
            while each in by_hash and each not in seen:
                seen.add(each)
                path.append(each)
                each = by_hash[each][0].parent_block_hash
            for each in reversed(path):
                yield from by_hash[each]


class TruePublisher(Publisher):
    """Sends vLLM's events and ours so that a reader's index is right whenever it begins to read.

    - The first event is ``AllBlocksCleared``.
    - ``AllBlocksCleared`` of vLLM's means its own blocks; a reader drops those of all tiers. The
      tiers' blocks are sent anew after it.
    - Before the first batch would be lost for replays, the numbers begin at 0 again, with
      ``AllBlocksCleared`` and all blocks. A replay from 0 is complete for as long as the engine
      lives. To a reader it looks like a restart.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._mirror = Mirror()  # the thread begins in what follows
        super().__init__(*arguments, **options)

    def begin(self) -> None:
        """Send the first event."""
        self.send([AllBlocksCleared()])

    def forward(self, batch: KVEventBatch) -> None:
        """Send a batch."""
        if self.replays and self.most_kept >= _FEWEST and self.kept + 2 > self.most_kept:
            self._tell_anew()
        events = list(batch.events)
        while (end := _first_clearing(events)) < len(events):
            self._send(events[:end])
            self._mirror.clear_engine()
            tiers = list(self._mirror.snapshot())
            self.send([AllBlocksCleared()])
            self._send_snapshot(tiers)
            events = events[end + 1 :]
        self._send(events)

    def _send(self, events: Sequence[Any]) -> None:
        for event in events:
            self._mirror.apply(event)
        if events:
            self.send(events)

    def _tell_anew(self) -> None:
        self.restart()
        self.send([AllBlocksCleared()])
        self._send_snapshot(list(self._mirror.snapshot()))

    def _send_snapshot(self, blocks: Sequence[BlockStored]) -> None:
        most = max(1, int(self.most_kept * _SNAPSHOT_SHARE))
        size = max(_BATCH, -(-len(blocks) // most))
        for begin in range(0, len(blocks), size):
            self.send(blocks[begin : begin + size])


def events_of(
    changes: Iterable[Change], block_size: int, spec: dict[str, Any]
) -> list[BlockStored | BlockRemoved]:
    """The events that announce changes.

    Args:
        changes: as :class:`.Announcements` gives them.
        block_size: the tokens of a block.
        spec: what vLLM's events say of the group (:func:`.spec_of`).
    """
    events = []
    for change in changes:
        chunk, (medium, locality) = change.chunk, MEDIA[change.tier]
        where = {**spec, "medium": medium, "locality": locality}
        if not change.present:
            # A child is of no use without its parent.
            names = list(reversed(chunk.block_hashes))
            events.append(removed(block_hashes=names, **where))
            continue
        events.append(
            stored(
                block_hashes=list(chunk.block_hashes),
                parent_block_hash=chunk.parent,
                token_ids=chunk.tokens.tolist(),
                block_size=block_size,
                lora_id=chunk.lora_id,
                lora_name=chunk.lora_name,
                extra_keys=None if chunk.extra_keys is None else list(chunk.extra_keys),
                **where,
            )
        )
    return events


def _first_clearing(events: Sequence[Any]) -> int:
    """The place of the first ``AllBlocksCleared``; the number of events where there is none."""
    places = (place for place, each in enumerate(events) if isinstance(each, AllBlocksCleared))
    return next(places, len(events))


def _place(event: BlockStored | BlockRemoved, name: BlockHash) -> _Place:
    return event.medium, getattr(event, "locality", None), event.group_idx, name


def _single_blocks(event: BlockStored) -> Iterator[BlockStored]:
    """An event for each block of an event."""
    if len(event.block_hashes) == 1:
        yield event
        return
    fields = {name: getattr(event, name) for name in event.__struct_fields__}
    size, parent = event.block_size, event.parent_block_hash
    for number, name in enumerate(event.block_hashes):
        fields["block_hashes"], fields["parent_block_hash"] = [name], parent
        fields["token_ids"] = event.token_ids[number * size : (number + 1) * size]
        fields["extra_keys"] = event.extra_keys and [event.extra_keys[number]]
        yield stored(**fields)
        parent = name
