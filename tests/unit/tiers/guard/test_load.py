"""A load, piece by piece: what is filled, and what is given back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from kserve_lmcache.tiers.guard.codec import MAX_HEADER, CorruptValueError, Layout, encode_header
from kserve_lmcache.tiers.guard.load import Load
from kserve_lmcache.tiers.guard.store import PIECE, StoreError, ValueStream, in_memory
from tests.support.tiers import chunks

SIZE = 2 * PIECE + 100
LAYOUT = Layout("KV_2LTD", (("uint8", (SIZE,)),))
PAYLOADS = chunks("a", "b", "c", size=SIZE)
VALUES = {key: encode_header(key, LAYOUT, payload) + payload for key, payload in PAYLOADS.items()}


class StreamsStore:
    """Has a stream for each key. A mock: nothing but reads."""

    def __init__(self, streams: Sequence[ValueStream | None]) -> None:
        self.streams = streams
        self.ended = False

    def read(self, keys: Sequence[str]) -> Iterator[ValueStream | None]:
        try:
            yield from self.streams
        finally:
            self.ended = True


class Rooms:
    """Rooms that were made, and those that were given back."""

    def __init__(self, size: int | None = None) -> None:
        self.made: list[bytearray] = []
        self.released: list[bytearray] = []
        self._size = size

    def make(self, layout: Layout, size: int) -> tuple[bytearray, memoryview]:
        assert layout == LAYOUT
        self.made.append(bytearray(size if self._size is None else self._size))
        return self.made[-1], memoryview(self.made[-1])

    def load(self, *streams: ValueStream | None) -> Load[bytearray]:
        load = Load([*VALUES][: len(streams)], self.make, self.released.append)
        store = StreamsStore(streams)
        load.run(store)  # type: ignore[arg-type]
        assert store.ended
        return load


def cut(value: bytes, size: int) -> ValueStream:
    return ValueStream(len(value), (value[at : at + size] for at in range(0, len(value), size)))


@pytest.mark.parametrize("size", [MAX_HEADER, 3000, PIECE, 10 * PIECE])
def test_pieces_of_any_size_fill_the_rooms(size: int) -> None:
    rooms = Rooms()
    load = rooms.load(*(cut(value, size) for value in VALUES.values()))
    assert [bytes(room) for room in load.finish()] == [*PAYLOADS.values()]
    assert load.bytes == sum(map(len, VALUES.values()))
    assert not rooms.released
    assert load.outcome == ""


@pytest.mark.parametrize("place", [1, 20, 40, 60, 100, 300, PIECE, 2 * PIECE, -1])
def test_a_value_that_is_damaged_anywhere_is_given_back(place: int) -> None:
    damaged = bytearray(VALUES["b"])
    damaged[place] ^= 1
    rooms = Rooms()
    load = rooms.load(in_memory(VALUES["a"]), in_memory(damaged), in_memory(VALUES["c"]))
    assert [bytes(room) for room in load.finish()] == [PAYLOADS["a"]]
    assert load.outcome == "chunks_corrupt"
    assert load.corruption
    assert rooms.released == rooms.made[1:]  # no room is made where the header is damaged


def test_room_is_made_for_what_a_right_header_says_alone() -> None:
    huge = Layout("KV_2LTD", (("uint8", (2**40,)),))
    begin = encode_header("a", huge, b"")
    value = begin[:-100] + bytes(100) + PAYLOADS["a"]
    rooms = Rooms()
    assert rooms.load(in_memory(value)).outcome == "chunks_corrupt"
    assert not rooms.made


@pytest.mark.parametrize("end", [0, 10, 200, PIECE, SIZE])
def test_a_value_that_ends_early_is_corrupt(end: int) -> None:
    value = VALUES["a"]
    rooms = Rooms()
    load = rooms.load(ValueStream(len(value), iter([value[:end]] if end else [])))
    assert load.outcome == "chunks_corrupt"
    assert rooms.released == rooms.made


def test_a_value_that_grows_while_it_is_read_is_corrupt() -> None:
    value = VALUES["a"]
    rooms = Rooms()
    load = rooms.load(ValueStream(len(value), iter([value, b"more"])))
    assert load.corruption == f"the payload has more than {SIZE} bytes"
    assert rooms.released == rooms.made


def test_a_piece_that_cannot_be_read_ends_the_load() -> None:
    def damaged() -> Iterator[bytes]:
        yield VALUES["b"][:PIECE]
        raise CorruptValueError("the file: input/output error")

    def broken() -> Iterator[bytes]:
        yield VALUES["a"][:PIECE]
        raise StoreError("the connection broke")

    size = len(VALUES["a"])
    rooms = Rooms()
    load = rooms.load(in_memory(VALUES["a"]), ValueStream(size, damaged()))
    assert load.corruption == "the file: input/output error"
    assert rooms.released == rooms.made[1:]
    rooms = Rooms()
    with pytest.raises(StoreError, match="broke"):
        rooms.load(ValueStream(size, broken()))
    assert rooms.released == rooms.made


def test_nothing_is_written_after_the_end() -> None:
    """The room is another chunk's then."""
    rooms, loads = Rooms(), []

    def ends() -> Iterator[bytes]:
        yield VALUES["a"][:PIECE]
        assert loads[0].finish() == []
        rooms.made[0][:] = bytes(SIZE)
        yield VALUES["a"][PIECE:]

    load = Load(["a"], rooms.make, rooms.released.append)
    loads.append(load)
    load.run(StreamsStore([ValueStream(len(VALUES["a"]), ends())]))  # type: ignore[arg-type]
    assert rooms.made == rooms.released == [bytearray(SIZE)]
    assert load.outcome == ""
