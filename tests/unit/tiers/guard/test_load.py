"""A load, piece by piece: what is filled, and what is given back."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest

from kserve_lmcache.tiers.guard.codec import (
    MAX_HEADER,
    CorruptValueError,
    Layout,
    encode_header,
    header_size,
)
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
        self.made.append(bytearray(size if self._size is None else self._size))
        return self.made[-1], memoryview(self.made[-1])

    def new_load(self, count: int) -> Load[bytearray]:
        return Load([*VALUES][:count], self.make, self.released.append, SIZE)

    def load(self, *streams: ValueStream | None) -> Load[bytearray]:
        load = self.new_load(len(streams))
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
    is_header = 0 < place < header_size(LAYOUT)
    assert len(rooms.made) == (1 if is_header else 2)
    assert rooms.released == rooms.made[1:]


def test_no_room_is_made_for_what_a_wrong_header_says() -> None:
    value = bytearray(VALUES["a"])
    at = value.index(str(SIZE).encode())
    value[at : at + 1] = b"9"
    rooms = Rooms()
    assert rooms.load(in_memory(value)).corruption == "the header's checksum differs"
    assert not rooms.made


def test_a_payload_that_is_larger_than_a_chunk_is_corrupt() -> None:
    payload = bytes(SIZE + 1)
    value = encode_header("a", LAYOUT, payload) + payload
    rooms = Rooms()
    assert rooms.load(in_memory(value)).corruption == f"the payload has more than {SIZE} bytes"
    assert not rooms.made


@pytest.mark.parametrize("size", [0, 1, SIZE - 1, SIZE + 1, 2 * SIZE])
def test_a_room_of_another_size_than_the_payload_is_no_hit(size: int) -> None:
    rooms = Rooms(size)
    load = rooms.load(in_memory(VALUES["a"]))
    assert load.corruption == f"the payload has {SIZE} bytes, and its layout {size}"
    assert load.finish() == []
    assert rooms.released == rooms.made


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


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_room_is_given_back_at_the_end_and_nothing_is_written_there_later(pieces: int) -> None:
    """It is another chunk's then, however long the store hangs."""
    rooms, hangs, goes_on = Rooms(), threading.Event(), threading.Event()

    def hanging() -> Iterator[bytes]:
        value = VALUES["a"]
        for number in range(pieces):
            yield value[number * PIECE : (number + 1) * PIECE]
        hangs.set()
        assert goes_on.wait(10)
        yield value[pieces * PIECE :]

    load = rooms.new_load(1)
    store = StreamsStore([ValueStream(len(VALUES["a"]), hanging())])
    thread = threading.Thread(target=load.run, args=(store,))
    thread.start()
    assert hangs.wait(10)
    assert load.finish() == []
    assert rooms.released == rooms.made
    rooms.made[0][:] = bytes(SIZE)
    goes_on.set()
    thread.join(10)
    assert store.ended
    assert rooms.made == rooms.released == [bytearray(SIZE)]
    assert load.outcome == ""
