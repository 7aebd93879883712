"""A chunk's digest tells everything that its KV depends on, and nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kserve_lmcache.connector.multiprocess.digests import ChunkDigests

CHUNK = 4
TOKENS = st.lists(st.integers(0, 2**32 - 1), min_size=CHUNK, max_size=6 * CHUNK)


def digests(tokens: list[int], seed: str = "seed") -> list[bytes]:
    return ChunkDigests(seed, CHUNK).first(len(tokens) // CHUNK, tokens)


@given(TOKENS, st.data())
def test_it_does_not_matter_when_they_are_asked_for(tokens: list[int], data: st.DataObject) -> None:
    chunks, asked = len(tokens) // CHUNK, ChunkDigests("seed", CHUNK)
    for count in data.draw(st.lists(st.integers(0, chunks))):
        assert asked.first(count, tokens[: count * CHUNK]) == digests(tokens)[:count]


@given(TOKENS, st.data())
def test_a_token_changes_its_chunk_and_all_after_it(tokens: list[int], data: st.DataObject) -> None:
    chunks = len(tokens) // CHUNK
    place = data.draw(st.integers(0, chunks * CHUNK - 1))
    other = [*tokens]
    other[place] = (other[place] + 1) % 2**32
    pairs = zip(digests(tokens), digests(other), strict=True)
    assert [one == same for one, same in pairs] == [
        number < place // CHUNK for number in range(chunks)
    ]


@given(TOKENS)
def test_another_seed_changes_all(tokens: list[int]) -> None:
    assert set(digests(tokens)).isdisjoint(digests(tokens, "other"))


def test_equal_chunks_at_other_places_differ() -> None:
    assert len(set(digests([1, 2, 3, 4] * 5))) == 5


def test_they_are_the_same_in_every_process() -> None:
    assert digests([1, 2, 3, 4])[0].hex() == (
        "0d792ae495b5f39a63e495993e33dd372ad153e4575813d783eb7cfc6448babc"
    )
