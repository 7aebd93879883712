"""The ledger: each tier announces what all workers hold, each chunk once."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from kserve_lmcache.connector.events.chunks import Chunk, Prompt
from kserve_lmcache.connector.events.ledger import Announcements, Change, Ledger

TIERS, NAMES, RANKS = ("local", "disk", "remote"), "abcd", 3


def chunk(last: int, parent: int | None = None) -> Chunk:
    return Chunk((last,), parent, array("I", [1, 2]))


CHUNKS = {name: chunk(number) for number, name in enumerate(NAMES)}
TRACES = st.lists(
    st.one_of(
        st.tuples(
            st.integers(0, RANKS - 1), st.sampled_from(TIERS), st.sampled_from(NAMES), st.booleans()
        ),
        st.sampled_from(NAMES),  # its hashes become known
    ),
    max_size=80,
)


def follow(index: set[tuple[str, int]], changes: list[Change]) -> None:
    """A reader that counts."""
    for change in changes:
        place = (change.tier, int(change.chunk.name))
        assert (place in index) != change.present, "announced twice, or removed twice"
        (index.add if change.present else index.discard)(place)


@given(TRACES)
def test_the_index_is_what_all_workers_hold(trace: list[object]) -> None:
    ledger, announcements = Ledger(RANKS), Announcements()
    held: set[tuple[int, str, str]] = set()
    known: set[str] = set()
    index: set[tuple[str, int]] = set()
    for each in trace:
        if isinstance(each, str):
            known.add(each)
            found = list(ledger.learn(each, CHUNKS[each]))
        else:
            rank, tier, name, present = each  # type: ignore[misc]
            (held.add if present else held.discard)((rank, tier, name))
            found = list(ledger.note(rank, tier, name, present))
        follow(index, list(announcements.of(found)))
        assert index == {
            (tier, int(CHUNKS[name].name))
            for tier in TIERS
            for name in known
            if all((rank, tier, name) in held for rank in range(RANKS))
        }
    for tier in TIERS:
        assert ledger.held(tier) == {
            name for name in NAMES if all((rank, tier, name) in held for rank in range(RANKS))
        }


@given(TRACES, st.integers(0, RANKS - 1))
def test_a_worker_that_tells_all_anew_makes_the_ledger_right(
    trace: list[object], rank: int
) -> None:
    """Of the trace, what the worker told was lost."""
    ledger, announcements = Ledger(RANKS), Announcements()
    held = {(who, tier, name) for who in range(RANKS) for tier in TIERS for name in NAMES}
    index: set[tuple[str, int]] = set()
    for name in NAMES:
        list(ledger.learn(name, CHUNKS[name]))
    for who, tier, name in held:
        follow(index, list(announcements.of(ledger.note(who, tier, name, True))))
    for each in trace:
        if isinstance(each, tuple):
            who, tier, name, present = each
            (held.add if present else held.discard)((who, tier, name))
            if who != rank:
                follow(index, list(announcements.of(ledger.note(who, tier, name, present))))
    ledger.begin(rank)
    for who, tier, name in held:
        if who == rank:
            follow(index, list(announcements.of(ledger.note(who, tier, name, True))))
    follow(index, list(announcements.of(ledger.end(rank))))
    assert {(change.tier, change.name) for change in ledger.all()} == {
        (tier, name)
        for tier in TIERS
        for name in NAMES
        if all((who, tier, name) in held for who in range(RANKS))
    }
    assert index == {(change.tier, change.chunk.name) for change in ledger.all()}


def test_two_chunks_with_the_same_hashes_are_one_for_readers() -> None:
    ledger, announcements = Ledger(1), Announcements()
    for name in ("a", "b"):
        list(ledger.learn(name, chunk(7)))
    told = [
        [change.present for change in announcements.of(ledger.note(0, "local", name, present))]
        for name, present in (("a", True), ("b", True), ("a", False), ("b", False))
    ]
    assert told == [[True], [], [], [False]]


def test_an_adapter_with_two_names_is_announced_by_both() -> None:
    ledger = Ledger(1)
    list(ledger.learn("a", chunk(1)))
    assert [each.chunk.name for each in ledger.note(0, "local", "a", True)] == [1]
    assert [each.chunk.name for each in ledger.learn("a", chunk(2))] == [2]
    assert list(ledger.learn("a", chunk(2))) == []
    assert [each.chunk.name for each in ledger.note(0, "local", "a", False)] == [1, 2]


def test_hashes_of_chunks_that_nobody_stores_are_forgotten() -> None:
    ledger = Ledger(1)
    ledger.most_loose = 2
    list(ledger.note(0, "local", "kept", True))
    for number, name in enumerate(("kept", "a", "b", "c")):
        list(ledger.learn(name, chunk(number)))
    assert not ledger.knows("a", 1)
    assert ledger.knows("kept", 0)
    assert ledger.knows("c", 3)


def test_a_prompt_is_cut_into_whole_chunks() -> None:
    prompt = Prompt(
        "kserve%1", list(range(11)), [10, 20, 30, 40, 50], [("s",), None, None, None, None]
    )
    found = dict(prompt.chunks(["x", "y", "z"], chunk_tokens=4, size=2))
    assert found == {
        "x@kserve%1": Chunk((10, 20), None, array("I", range(4)), (("s",), None)),
        "y@kserve%1": Chunk((30, 40), 20, array("I", range(4, 8)), (None, None)),
    }
    assert list(prompt.chunks(["x"], 4, 2, lambda name, last: last == 20)) == []
