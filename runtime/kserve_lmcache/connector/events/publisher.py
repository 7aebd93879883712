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

_Place = tuple[str | None, str | None, int | None]  # medium, locality and group


class TiersCleared:
    """An event of our own that no reader gets: the tiers' blocks follow anew."""


class Mirror:
    """What the engine and the tiers hold, by the events so far."""

    def __init__(self) -> None:
        self._blocks: dict[BlockHash, dict[_Place, BlockStored]] = {}  # events of one block

    def __contains__(self, name: BlockHash | None) -> bool:
        return name in self._blocks

    def apply(self, event: Any) -> None:
        """Take an event."""
        if isinstance(event, BlockStored):
            for block in _single_blocks(event):
                places = self._blocks.setdefault(block.block_hashes[0], {})
                places.setdefault(_place(block), block)
        elif isinstance(event, BlockRemoved):
            for name in event.block_hashes:
                places = self._blocks.get(name, {})
                places.pop(_place(event), None)
                if not places:
                    self._blocks.pop(name, None)

    def has(self, event: BlockStored) -> bool:
        """Whether the blocks of an event are held where the event says."""
        return _place(event) in self._blocks.get(event.block_hashes[-1], ())

    def clear(self, clearing: AllBlocksCleared | TiersCleared) -> None:
        """Forget the engine's own blocks, or those of the tiers."""
        of_tiers = isinstance(clearing, TiersCleared)
        for name, places in list(self._blocks.items()):
            left = {
                place: block for place, block in places.items() if (place[0] in _ENGINE) == of_tiers
            }
            if left:
                self._blocks[name] = left
            else:
                del self._blocks[name]

    def snapshot(self) -> Iterator[BlockStored]:
        """An event for each block, parents first."""
        seen: set[BlockHash | None] = set()
        for name in self._blocks:
            path: list[BlockHash] = []
            each: BlockHash | None = name
            while each in self._blocks and each not in seen:
                seen.add(each)
                path.append(each)
                each = next(iter(self._blocks[each].values())).parent_block_hash
            for found in reversed(path):
                yield from self._blocks[found].values()


class TruePublisher(Publisher):
    """Sends vLLM's events and ours so that a reader's index is right whenever it begins to read.

    - The first event is ``AllBlocksCleared``.
    - ``AllBlocksCleared`` of vLLM's means its own blocks; a reader drops those of all tiers. The
      tiers' blocks are sent anew after it.
    - Before the first batch would be lost for replays, the numbers begin at 0 again, with
      ``AllBlocksCleared`` and all blocks. A replay from 0 is complete for as long as the engine
      lives. To a reader it looks like a restart.
    - A block whose parent is held nowhere cannot be loaded, and readers drop its event. Its event
      waits for the parent's.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        # The thread begins in what follows.
        self._mirror = Mirror()
        self._told: set[BlockHash] = set()  # of what the mirror has
        # By the parent's hash; by place and hash.
        self._waiting: dict[BlockHash, dict[tuple[_Place, BlockHash], BlockStored]] = {}
        super().__init__(*arguments, **options)

    def begin(self) -> None:
        """Send the first event."""
        self.send([AllBlocksCleared()])

    def forward(self, batch: KVEventBatch) -> None:
        """Send a batch."""
        if self.replays and self.most_kept >= _FEWEST and self.kept + 2 > self.most_kept:
            self.restart()
            self._tell_all()
        events = list(batch.events)
        while (end := _first_clearing(events)) < len(events):
            self._send(events[:end])
            self._mirror.clear(events[end])
            self._tell_all()
            events = events[end + 1 :]
        self._send(events)

    def _send(self, events: Iterable[Any]) -> None:
        for event in events:
            self._mirror.apply(event)
        if told := [each for event in events for each in self._due(event)]:
            self.send(told)

    def _tell_all(self) -> None:
        """Let readers drop what they know, and send all that is held."""
        self._told, self._waiting = set(), {}
        self.send([AllBlocksCleared()])
        blocks = [each for event in self._mirror.snapshot() for each in self._due(event)]
        most = max(1, int(self.most_kept * _SNAPSHOT_SHARE))
        size = max(_BATCH, -(-len(blocks) // most))
        for begin in range(0, len(blocks), size):
            self.send(blocks[begin : begin + size])

    def _due(self, event: Any) -> Iterator[Any]:
        """An event, and those that waited for it; nothing where the event has to wait itself."""
        if not isinstance(event, BlockStored):
            if isinstance(event, BlockRemoved):
                self._told.difference_update(
                    name for name in event.block_hashes if name not in self._mirror
                )
            yield event
            return
        pending = [event]
        while pending:
            each = pending.pop()
            parent = each.parent_block_hash
            if parent is not None and parent not in self._told:
                waiting = self._waiting.setdefault(parent, {})
                waiting[(_place(each), each.block_hashes[-1])] = each
                continue
            yield each
            self._told.update(each.block_hashes)
            for name in each.block_hashes:
                children = self._waiting.pop(name, {}).values()
                pending += [child for child in children if self._mirror.has(child)]


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
    """The place of the first event that clears; the number of events where there is none."""
    kinds = (AllBlocksCleared, TiersCleared)
    places = (place for place, each in enumerate(events) if isinstance(each, kinds))
    return next(places, len(events))


def _place(event: BlockStored | BlockRemoved) -> _Place:
    return event.medium, getattr(event, "locality", None), event.group_idx


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
