"""What a server may answer, however the network cuts it."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

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


def pieces(*data: bytes) -> socket.socket:
    return cast("socket.socket", Pieces(*data))


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[begin:end] for begin, end in pairwise(edges)]


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
    answers = Answers(LARGEST)
    connection = pieces(*cut(data, places))
    assert [bytes(answers.read(connection)) for _ in values] == values


def test_an_answer_is_valid_until_the_next_one_and_takes_no_memory() -> None:
    answers = Answers(LARGEST)
    connection = pieces(told(b"a" * LARGEST), told(b"b" * LARGEST))
    first = answers.read(connection)
    assert bytes(first) == b"a" * LARGEST
    second = answers.read(connection)
    assert first.obj is second.obj


def test_errors_and_nothing_are_answers_as_well() -> None:
    data = b"-WRONGTYPE is a list\r\n" + told(b"") + b"$-1\r\n-LOADING wait\r\n" + told(b"value")
    answers = Answers(LARGEST)
    connection = pieces(data)
    with pytest.raises(redis.ResponseError, match="WRONGTYPE is a list"):
        answers.read(connection)
    assert answers.read(connection) == b""
    assert answers.read(connection) == b""
    with pytest.raises(redis.BusyLoadingError, match="wait"):
        answers.read(connection)
    assert answers.read(connection) == b"value"


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
        Answers(LARGEST).read(pieces(data))


@pytest.mark.parametrize("length", [0, 3, 5, 4000, 9000])
def test_a_connection_that_ends_within_an_answer_is_an_error(length: int) -> None:
    with pytest.raises(redis.ConnectionError, match="closed"):
        Answers(LARGEST).read(pieces(told(b"a" * LARGEST)[:length]))


def test_an_answer_that_does_not_come_in_time_is_redis_own_error() -> None:
    server, client = socket.socketpair()
    with server, client:
        client.settimeout(0.05)
        server.sendall(told(b"a" * LARGEST)[:100])
        with pytest.raises(redis.TimeoutError, match="Timeout reading"):
            Answers(LARGEST).read(client)


def test_nothing_of_an_old_connection_is_in_an_answer() -> None:
    answers = Answers(LARGEST)
    assert answers.read(pieces(told(b"old") + told(b"older"))) == b"old"
    answers.forget()
    assert answers.read(pieces(told(b"new"))) == b"new"
