"""What a server may answer, however the network cuts it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from kserve_lmcache.tiers.guard.store import PIECE
from kserve_lmcache.tiers.redis.answers import Answers

LARGEST = 10_000


class Pieces:
    """Stands for a socket: one piece of what a server answers at a time, and then its end."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = [piece for piece in pieces if piece]

    def recv_into(self, buffer: memoryview) -> int:
        piece = self._pieces.pop(0) if self._pieces else b""
        came, rest = piece[: len(buffer)], piece[len(buffer) :]
        buffer[: len(came)] = came
        self._pieces[:0] = [rest] if rest else []
        return len(came)


def pieces(*data: bytes) -> Callable[[], socket.socket]:
    connection = cast("socket.socket", Pieces(*data))
    return lambda: connection


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[begin:end] for begin, end in pairwise(edges)]


def whole(answers: Answers) -> bytes:
    value = answers.read()
    return b"" if value is None else value.whole()


def told(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


lengths = st.one_of(st.integers(0, 20), st.integers(4070, 4110), st.just(LARGEST))


@given(
    st.lists(st.tuples(lengths, st.binary(min_size=1, max_size=9)), min_size=1, max_size=5),
    st.lists(st.integers(0, 2**31), max_size=6),
)
def test_answers_come_whole_however_they_are_cut(
    parts: list[tuple[int, bytes]], places: list[int]
) -> None:
    values = [(seed * length)[:length] for length, seed in parts]
    data = b"".join(map(told, values))
    answers = Answers(pieces(*cut(data, places)), LARGEST)
    assert [whole(answers) for _ in values] == values


def test_an_answer_takes_no_memory_of_its_own() -> None:
    size = 5 * PIECE + 7
    answers = Answers(pieces(told(b"a" * size), told(b"b" * size)), size)
    buffers = []
    for letter in b"ab":
        value = answers.read()
        assert value is not None
        for left, piece in zip(range(size, 0, -PIECE), value.pieces, strict=True):
            assert bytes(piece) == bytes([letter]) * min(left, PIECE)
            buffers.append(memoryview(piece).obj)
    assert all(buffer is buffers[0] for buffer in buffers)


@pytest.mark.parametrize("read", [0, 1, 2])
def test_what_was_not_read_of_an_answer_is_passed_over(read: int) -> None:
    size = 2 * PIECE + 7
    answers = Answers(pieces(told(b"a" * size) + told(b"b" * size)), size)
    first = answers.read()
    assert first is not None
    for _ in range(read):
        assert bytes(next(first.pieces)) == b"a" * PIECE
    assert whole(answers) == b"b" * size


def test_errors_and_nothing_are_answers_as_well() -> None:
    data = b"-WRONGTYPE is a list\r\n" + told(b"") + b"$-1\r\n-LOADING wait\r\n" + told(b"value")
    answers = Answers(pieces(data), LARGEST)
    with pytest.raises(redis.ResponseError, match="WRONGTYPE is a list"):
        answers.read()
    assert answers.read() is None
    assert answers.read() is None
    with pytest.raises(redis.BusyLoadingError, match="wait"):
        answers.read()
    assert whole(answers) == b"value"


@pytest.mark.parametrize(
    "data",
    [
        b"+OK\r\n",
        b":3\r\n",
        b"*1\r\n$1\r\na\r\n",
        b"$x\r\n",
        b"$-2\r\n",
        b"$" + b"9" * 40 + b"\r\n",
        told(b"a" * (LARGEST + 1)),
        b"\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"a" * 20_000,
    ],
)
def test_what_is_no_answer_of_getrange_is_refused(data: bytes) -> None:
    with pytest.raises(redis.InvalidResponse, match="GETRANGE is answered by"):
        Answers(pieces(data), LARGEST).read()


@pytest.mark.parametrize("length", [0, 3, 5, 4000, 9000])
def test_a_connection_that_ends_within_an_answer_is_an_error(length: int) -> None:
    with pytest.raises(redis.ConnectionError, match="closed"):
        whole(Answers(pieces(told(b"a" * LARGEST)[:length]), LARGEST))


def test_an_answer_that_does_not_come_in_time_is_redis_own_error() -> None:
    server, client = socket.socketpair()
    with server, client:
        client.settimeout(0.05)
        server.sendall(told(b"a" * LARGEST)[:100])
        with pytest.raises(redis.TimeoutError, match="Timeout reading"):
            whole(Answers(lambda: client, LARGEST))


def test_what_comes_once_another_thread_has_closed_the_connection_is_no_answer() -> None:
    """A socket of TLS gives what the server sent as it is then."""
    connections = iter([pieces(told(b"text"))()])

    def socket_of_connection() -> socket.socket:
        for connection in connections:
            return connection
        raise redis.ConnectionError("the connection was closed")

    with pytest.raises(redis.ConnectionError, match="the connection was closed"):
        whole(Answers(socket_of_connection, LARGEST))
