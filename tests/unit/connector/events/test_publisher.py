"""The publisher: whoever begins to read, and whenever, has what is held."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kserve_lmcache.compat.vllm_events import AllBlocksCleared, KVEventBatch, removed, stored
from kserve_lmcache.connector.events.chunks import Chunk
from kserve_lmcache.connector.events.ledger import Change
from kserve_lmcache.connector.events.publisher import TiersCleared, TruePublisher, events_of
from tests.support.event_readers import DynamoIndex, LlmdIndex, decode, reading
from tests.support.ports import free_port

SIZE = 2
SPEC = {"group_idx": 0, "kv_cache_spec_kind": "full_attention"}
# Blocks form two chains: 1 2 3 … 8 and 11 12 … 18.
NUMBERS = itertools.count()
NAMES = [*range(1, 9), *range(11, 19)]


def block(name: int, medium: str) -> object:
    parent = None if name % 10 == 1 else name - 1
    return stored(
        block_hashes=[name],
        parent_block_hash=parent,
        token_ids=[name, name],
        block_size=SIZE,
        lora_id=None,
        lora_name=None,
        medium=medium,
        **SPEC,
    )


class Quiet(TruePublisher):
    """A publisher without a thread or sockets, which keeps what it sends."""

    SHUTDOWN_TIMEOUT = 0.0

    def __init__(self, most: int) -> None:
        name = next(NUMBERS)
        super().__init__(0, f"inproc://quiet-{name}", f"inproc://replay-{name}", most)
        self.shutdown()
        self.batches: list[tuple[int, bytes]] = []

    def _publisher_thread(self) -> None:
        self._pack = msgspec.msgpack.Encoder()

    def send(self, events: object) -> None:
        self._pub = self._replay = _Nowhere()
        super().send(events)  # type: ignore[arg-type]

    def replayed(self) -> tuple[LlmdIndex, DynamoIndex]:
        """The indexes of readers that ask for everything from 0."""
        assert self._buffer[0][0] == 0
        llmd, dynamo = LlmdIndex(), DynamoIndex()
        for _, payload in self._buffer:
            for event in decode(payload)[1]:
                llmd.apply(event)
                dynamo.apply(event)
        return llmd, dynamo


class _Nowhere:
    def send_multipart(self, message: object) -> None:
        """Nobody reads."""


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(("GPU", "CPU", "STORAGE")), st.sampled_from(NAMES)),
        st.just("reset"),
        st.just("reset of the tiers"),
    ),
    max_size=120,
)


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=300)
@given(ACTIONS, st.sampled_from([16, 20, 1000]))
def test_a_replay_from_0_is_what_is_held_and_can_be_loaded(
    actions: list[object], most: int
) -> None:
    publisher = Quiet(most)
    publisher.begin()
    held: set[tuple[str, int]] = set()
    for action in actions:
        if action == "reset":
            held = {place for place in held if place[0] != "GPU"}
            publisher.forward(KVEventBatch(ts=0.0, events=[AllBlocksCleared()]))
            continue
        if action == "reset of the tiers":
            held = {place for place in held if place[0] == "GPU"}
            publisher.forward(KVEventBatch(ts=0.0, events=[TiersCleared()]))
            continue
        medium, name = action  # type: ignore[misc]
        if (medium, name) in held:
            held.discard((medium, name))
            event = removed(block_hashes=[name], medium=medium, **SPEC)
        else:
            held.add((medium, name))
            event = block(name, medium)
        publisher.forward(KVEventBatch(ts=0.0, events=[event]))
    anywhere = {name for _, name in held}
    usable = {name for name in anywhere if set(range(name - name % 10 + 1, name)) <= anywhere}
    llmd, dynamo = publisher.replayed()
    for medium, tier, theirs in (("CPU", "cpu", "host"), ("STORAGE", "storage", "disk")):
        exact = {name for where, name in held if where == medium}
        assert exact & usable <= llmd.hashes(tier) <= exact
        assert exact & usable <= dynamo.hashes(theirs) <= exact
    assert llmd.counts() <= {1}
    assert not llmd.dropped
    assert publisher.kept <= most


def test_an_event_of_ours_is_as_vllms_consumers_decode_it() -> None:
    one = Chunk((2**63 + 1, 2**64 - 1), 7, array("I", [1, 2, 3, 4]), (("salt",), None))
    changes = [Change(tier, "x", one, True) for tier in ("local", "disk", "remote")]
    changes.append(Change("local", "x", one, False))
    payload = msgspec.msgpack.encode(KVEventBatch(ts=1.0, events=events_of(changes, SIZE, SPEC)))
    _, events, _ = decode(payload)
    assert [each["medium"] for each in events] == ["CPU", "STORAGE", "REMOTE", "CPU"]
    assert events[0]["block_hashes"] == [2**63 + 1, 2**64 - 1]
    assert events[0]["parent_block_hash"] == 7
    assert events[0]["token_ids"] == [1, 2, 3, 4]
    assert events[0]["extra_keys"] == [["salt"], None]
    assert events[3]["type"] == "BlockRemoved"
    assert events[3]["block_hashes"] == [2**64 - 1, 2**63 + 1]


@pytest.fixture
def publisher() -> Iterator[tuple[TruePublisher, str, str]]:
    endpoint, replay = (f"tcp://127.0.0.1:{free_port()}" for _ in range(2))
    publisher = TruePublisher(0, endpoint.replace("127.0.0.1", "*"), replay, 50)
    yield publisher, endpoint, replay
    publisher.shutdown()


def test_a_reader_that_follows_and_a_late_one_agree(
    publisher: tuple[TruePublisher, str, str],
) -> None:
    one, endpoint, replay = publisher
    with reading(endpoint, replay) as early:
        early.catch_up()
        for number in range(130):
            name = 1 + number % 8
            event = block(name, "CPU")
            if (number // 8) % 2:
                event = removed(block_hashes=[name], medium="CPU", **SPEC)
            one.publish(KVEventBatch(ts=0.0, events=[event]))
        with reading(endpoint, replay) as late:
            from tests.support.waiting import until

            until(lambda: early.hashes("cpu") == {1, 2})
            late.catch_up()
            assert late.hashes("cpu") == {1, 2}
        assert early.restarts >= 2
