"""VLLM's KV-cache events, and the publisher that sends them (vLLM 0.24, 0.28 and 0.32).

================================  ===============================================================
name                              what differs between versions
================================  ===============================================================
``BlockStored``, ``BlockRemoved`` have ``locality`` since 0.28
extra keys of a block             are hashed with tags and published without since 0.32
                                  (``to_event_extra_keys``); 0.24 and 0.28 have no tags
``ZmqEventPublisher``             the same names in 0.24, 0.28 and 0.32; in 0.24 its answers to a
                                  replay lack the topic, which readers of later versions expect
================================  ===============================================================

``tests/unit/compat/test_vllm_events.py`` fails when an upgrade changes one of them.
"""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EventPublisherFactory,
    KVEventBatch,
    ZmqEventPublisher,
)
from vllm.logger import init_logger
from vllm.v1 import kv_cache_interface
from vllm.v1.core import kv_cache_utils

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

logger = init_logger(__name__)

_NUMBERS = itertools.count()
_PAUSE = 0.1  # seconds for which vLLM's thread waits for events, between two looks at replays

__all__ = [
    "AllBlocksCleared",
    "BlockRemoved",
    "BlockStored",
    "KVEventBatch",
    "Publisher",
    "are_wanted",
    "external_hashes",
    "extra_keys",
    "removed",
    "spec_of",
    "stored",
    "use_publisher",
]


def are_wanted(config: VllmConfig) -> bool:
    """Whether vLLM publishes KV-cache events."""
    events = config.kv_events_config
    return bool(events and events.enable_kv_cache_events and events.publisher != "null")


def use_publisher(config: VllmConfig, make: Callable[..., Publisher]) -> None:
    """Let vLLM's scheduler, which is made after its connector, make this publisher.

    Args:
        config: the scheduler's; changed in place.
        make: takes the arguments of :class:`Publisher`.
    """
    name = f"kserve-lmcache-{next(_NUMBERS)}"
    EventPublisherFactory.register_publisher(name, make)
    config.kv_events_config.publisher = name


def stored(**fields: Any) -> BlockStored:
    """A ``BlockStored`` of the fields that the installed version has."""
    return BlockStored(**_known(BlockStored, fields))


def removed(**fields: Any) -> BlockRemoved:
    """A ``BlockRemoved`` of the fields that the installed version has."""
    return BlockRemoved(**_known(BlockRemoved, fields))


def _known(kind: Any, fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name in kind.__struct_fields__}


def spec_of(kv_cache_config: KVCacheConfig) -> dict[str, Any]:
    """What vLLM's events say of the one group of KV caches that this package supports."""
    spec = kv_cache_config.kv_cache_groups[0].kv_cache_spec
    return {
        "group_idx": 0,
        "kv_cache_spec_kind": kv_cache_interface.get_kv_cache_spec_kind(spec).value,
        "kv_cache_spec_sliding_window": kv_cache_interface.get_kv_cache_spec_sliding_window(spec),
    }


def external_hashes(hashes: Iterable[Any]) -> list[int | bytes]:
    """Hashes of blocks, as events have them."""
    return [kv_cache_utils.maybe_convert_block_hash(each) for each in hashes]


def extra_keys(request: Request, blocks: int, size: int) -> list[tuple[Any, ...] | None] | None:
    """What vLLM hashes beside the tokens, of each block, as events have it.

    Args:
        request: a request without prompt embeddings.
        blocks: the number of blocks.
        size: the tokens of a block.

    Returns:
        An entry for each block; ``None`` where no block has any.
    """
    keys: list[tuple[Any, ...] | None] = []
    picture = 0
    for number in range(blocks):
        if number > 1 and not request.mm_features:  # all blocks but the first are alike
            keys += [keys[1]] * (blocks - number)
            break
        begin = number * size
        each, picture = kv_cache_utils.generate_block_hash_extra_keys(
            request, begin, begin + size, picture
        )
        keys.append(each)
    if not any(keys):
        return None
    convert = getattr(kv_cache_utils, "to_event_extra_keys", None)
    return keys if convert is None else convert(keys)


class Publisher(ZmqEventPublisher):  # type: ignore[misc]
    """VLLM's publisher, with a say in what is sent. All runs in the publisher's thread.

    A subclass sends batches by :meth:`send`.
    """

    def begin(self) -> None:
        """Called before anything is sent."""

    def forward(self, batch: KVEventBatch) -> None:
        """Called with each batch of vLLM's or of ours."""
        self.send(batch.events)

    def send(self, events: Sequence[Any]) -> None:
        """Send one batch, and keep it for replays."""
        batch = KVEventBatch(
            ts=time.time(), events=list(events), data_parallel_rank=self._data_parallel_rank
        )
        sequence, payload = next(self._seq_gen), self._pack.encode(batch)
        self._pub.send_multipart((self._topic_bytes, sequence.to_bytes(8, "big"), payload))
        self._buffer.append((sequence, payload))

    def restart(self) -> None:
        """Forget what was kept for replays, and number the batches from 0 again."""
        self._buffer.clear()
        self._seq_gen = itertools.count()

    @property
    def is_open(self) -> bool:
        """Whether batches may be published."""
        return bool(self._running)

    @property
    def replays(self) -> bool:
        """Whether readers can ask for earlier batches."""
        return self._replay is not None

    @property
    def kept(self) -> int:
        """The number of batches that are kept for replays."""
        return len(self._buffer)

    @property
    def most_kept(self) -> int:
        """The number of batches of which the first is forgotten with the next one."""
        return int(self._buffer.maxlen or 0)

    def _publisher_thread(self) -> None:
        import msgspec

        self._pack = msgspec.msgpack.Encoder()
        self._contained(self.begin)
        while self._running or not self._event_queue.empty():
            if self._replay is not None and self._replay.poll(0):
                self._contained(self._service_replay)
            try:
                batch = self._event_queue.get(timeout=_PAUSE)
            except queue.Empty:
                continue
            if batch is None:
                return
            self._contained(self.forward, batch)

    def _service_replay(self) -> None:
        """Answer a request for the batches from a number on, as vLLM does since 0.28."""
        frames = self._replay.recv_multipart()
        if len(frames) != 3:
            return
        client, _, first = frames
        for sequence, payload in self._buffer:
            if sequence >= int.from_bytes(first, "big"):
                number = sequence.to_bytes(8, "big")
                self._replay.send_multipart((client, b"", self._topic_bytes, number, payload))
        self._replay.send_multipart((client, b"", b"", self.END_SEQ, b""))

    def _contained(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception:
            logger.exception("KV-cache events were not sent")
            time.sleep(_PAUSE)
