"""Readers of KV-cache events that are not ours: what llm-d's and Dynamo's routers do with them.

Written after their public sources: llm-d-router (``pkg/kvevents``: ``vllm_adapter.go``,
``pool.go``, ``event_dedup_filter.go``, ``zmq_subscriber.go``) and Dynamo (``lib/kv-router``:
``zmq_wire/README.md``, ``zmq_wire/types.rs``, ``protocols.rs``). They decode msgpack by the names
of fields.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import zmq

Event = dict[str, Any]
# Dynamo's names of the media, by its tier.
DYNAMO_TIERS = {
    **dict.fromkeys(("GPU", "DEVICE"), "device"),
    **dict.fromkeys(("CPU", "CPU_PINNED", "CPU_TIER1"), "host"),
    **dict.fromkeys(("CPU_TIER2", "DISK", "NVME", "STORAGE"), "disk"),
    **dict.fromkeys(("EXTERNAL", "NETWORK", "REMOTE", "SHARED"), "external"),
}


def decode(payload: bytes) -> tuple[float, list[Event], int | None]:
    """A batch: its time, its events by field name, and the rank.

    Raises:
        AssertionError: the batch is not what both readers decode.
    """
    batch = msgspec.msgpack.decode(payload)
    assert isinstance(batch, list)
    assert len(batch) in (2, 3)
    stamp, events, *rank = batch
    assert isinstance(stamp, float)
    for event in events:
        assert isinstance(event, dict)
        assert event["type"] in ("BlockStored", "BlockRemoved", "AllBlocksCleared")
        for name in event.get("block_hashes", ()):
            assert 0 <= name < 2**64
    return stamp, events, rank[0] if rank else None


class LlmdIndex:
    """What llm-d's index has of one pod.

    Keys are its own, from tokens and from extra keys that are strings: an event without tokens or
    with an unknown parent is dropped. Blocks are counted by tier, group and hash.

    Attributes:
        dropped: stored blocks that were dropped.
    """

    def __init__(self) -> None:
        self.dropped: list[Event] = []
        self._keys: dict[int, str] = {}  # its own, by the engine's hash
        self._counts: Counter[tuple[str, int, int]] = Counter()
        self._groups: set[int] = set()

    def apply(self, event: Event) -> None:
        if event["type"] == "AllBlocksCleared":
            self._counts.clear()
            self._keys.clear()
        elif event["type"] == "BlockStored":
            self._store(event)
        else:
            group = event.get("group_idx", 0)
            if group not in self._groups:
                return
            for name in event["block_hashes"]:
                place = (_tier(event), group, name)
                if self._counts[place] > 0:
                    self._counts[place] -= 1

    def hashes(self, tier: str) -> set[int]:
        """The engine's hashes that a tier has."""
        return {name for (where, _, name), count in self._counts.items() if count and where == tier}

    def counts(self) -> set[int]:
        """How often blocks of tiers are counted. More than 1 would leave a ghost."""
        return {count for (tier, _, _), count in self._counts.items() if count and tier != "gpu"}

    def tokens(self, prompt: Sequence[int], block_size: int, salt: str = "") -> int:
        """The length of the longest prefix of which each block is in some tier."""
        have = {self._keys[name] for (_, _, name), count in self._counts.items() if count}
        key, found = "", 0
        for begin in range(0, len(prompt) - block_size + 1, block_size):
            extra = [salt] if salt and not begin else []
            key = _own_key(key, prompt[begin : begin + block_size], extra)
            if key not in have:
                break
            found += block_size
        return found

    def _store(self, event: Event) -> None:
        size, parent = event["block_size"], event["parent_block_hash"]
        known = parent is None or parent in self._keys
        described = "group_idx" not in event or event.get("kv_cache_spec_kind") or parent
        if not known or not described or not event["token_ids"]:
            self.dropped.append(event)
            return
        group = event.get("group_idx", 0)
        self._groups.add(group)
        key = "" if parent is None else self._keys[parent]
        for number, name in enumerate(event["block_hashes"]):
            extra = (event.get("extra_keys") or {number: None})[number]
            texts = [each for each in extra or () if isinstance(each, str)]
            tokens = event["token_ids"][number * size : (number + 1) * size]
            assert len(tokens) == size
            self._keys[name] = key = _own_key(key, tokens, texts)
            self._counts[(_tier(event), group, name)] += 1


class DynamoIndex:
    """What Dynamo's index has of one worker: a set of hashes for each tier.

    It drops unknown media, and what is remote.
    """

    def __init__(self) -> None:
        self._tiers: dict[str, set[int]] = {}

    def apply(self, event: Event) -> None:
        if event["type"] == "AllBlocksCleared":
            self._tiers.clear()
            return
        tier = DYNAMO_TIERS.get(event["medium"])
        if tier is None or event.get("locality") == "REMOTE":
            return
        have = self._tiers.setdefault(tier, set())
        change = have.update if event["type"] == "BlockStored" else have.difference_update
        change(event["block_hashes"])

    def hashes(self, tier: str) -> set[int]:
        return set(self._tiers.get(tier, ()))


class Reader:
    """Follows a publisher as llm-d does: by subscription, and by replay from 0 or after a gap.

    Attributes:
        index: follows all events.
        dynamo: the same.
        events: all of them since the numbers began, in order.
        restarts: how often the numbers began anew.
        lose: the next batches that arrive are lost.
    """

    def __init__(self, endpoint: str, replay: str | None = None, topic: str = "") -> None:
        self._lock = threading.Lock()
        self._clear()
        self.restarts = 0
        self.lose = 0
        self._last: int | None = None  # that was applied
        self._last_live: int | None = None  # that came by subscription
        self.endpoint, self.replay = endpoint, replay
        self._context: Any = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
        self._socket.connect(endpoint)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def catch_up(self) -> None:
        """Ask for all batches from 0, as a router does that has just found the pod.

        Raises:
            AssertionError: the answer does not begin with 0: the index could never be whole.
        """
        with self._lock:
            self._ask_from(0)

    def hashes(self, tier: str) -> set[int]:
        with self._lock:
            return self.index.hashes(tier)

    def tokens(self, prompt: Sequence[int], block_size: int, salt: str = "") -> int:
        with self._lock:
            return self.index.tokens(prompt, block_size, salt)

    def close(self) -> None:
        self._ending.set()
        self._thread.join(5)
        self._context.destroy(linger=0)

    def _run(self) -> None:
        while not self._ending.is_set():
            if self._socket.poll(50):
                _, number, payload = self._socket.recv_multipart()
                with self._lock:
                    self._take(int.from_bytes(number, "big"), payload)

    def _take(self, number: int, payload: bytes) -> None:
        if self.lose:
            self.lose -= 1
            return
        live, self._last_live = self._last_live, number
        if self.replay is not None:
            if live is not None and number < live:
                self.restarts += 1
                self._clear()
                self._last = None
                self._ask_from(0)
            elif self._last is None and number:
                self._ask_from(0)
            elif self._last is not None and number > self._last + 1:
                self._ask_from(self._last + 1)
            if self._last is not None and number <= self._last:
                return
        self._apply(number, payload)

    def _apply(self, number: int, payload: bytes) -> None:
        self._last = number
        _, events, _ = decode(payload)
        for event in events:
            self.events.append(event)
            self.index.apply(event)
            self.dynamo.apply(event)

    def _ask_from(self, first: int) -> None:
        assert self.replay is not None
        with self._context.socket(zmq.DEALER) as socket:
            socket.connect(self.replay)
            socket.send_multipart((b"", first.to_bytes(8, "big")))
            batches = []
            while socket.poll(5000):
                _, _, number, payload = socket.recv_multipart()
                if not payload:
                    break
                batches.append((int.from_bytes(number, "big"), payload))
        if first == 0:
            assert batches
            assert batches[0][0] == 0
            self._clear()
        for number, payload in batches:
            self._apply(number, payload)

    def _clear(self) -> None:
        self.index, self.dynamo = LlmdIndex(), DynamoIndex()
        self.events: list[Event] = []


@contextmanager
def reading(endpoint: str, replay: str | None = None, topic: str = "") -> Iterator[Reader]:
    """A reader for a while."""
    reader = Reader(endpoint, replay, topic)
    time.sleep(0.2)  # a subscription has no answer
    try:
        yield reader
    finally:
        reader.close()


def _tier(event: Event) -> str:
    return (event["medium"] or "gpu").lower()


def _own_key(parent: str, tokens: Sequence[int], extra: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([parent, list(tokens), list(extra)]).encode()).hexdigest()
