"""Answers that are strings of some megabytes, read from the socket piece by piece.

redis-py's parsers copy an answer twice into memory that is new for each: its pages take longer to
be mapped than to be filled, and what is freed in pieces lets the process grow. Here an answer takes
no memory of its own.
"""

from __future__ import annotations

import builtins
import socket
from collections.abc import Callable, Iterator

from redis.connection import DefaultParser
from redis.exceptions import ConnectionError, InvalidResponse, TimeoutError

from kserve_lmcache.tiers.guard.store import PIECE, ValueStream

_END = b"\r\n"
_FIRST = 4096  # bytes that the first read of an answer asks for; an error's text may be that long


class Answers:
    """Reads answers of GETRANGE in RESP2, the protocol of all of our connections.

    Args:
        socket_of_connection: returns the socket of a connection that has nothing to read yet, and
            raises once the connection was closed.
        max_bytes: of an answer's string.
    """

    def __init__(self, socket_of_connection: Callable[[], socket.socket], max_bytes: int) -> None:
        self._socket = socket_of_connection
        self._max_bytes = max_bytes
        self._buffer = memoryview(bytearray(PIECE + _FIRST))
        self._begin = self._end = 0  # of what was read and not used
        self._left = 0  # bytes of the last answer that were not used

    def read(self) -> ValueStream | None:
        """Returns the next answer's string, or ``None`` where the server has none.

        The rest of the answer before is read first.

        Raises:
            redis.RedisError: the answer is an error, is none of GETRANGE, or does not come. The
                pieces raise it too.
            OSError: the socket's.
        """
        self.end()
        line = self._line()
        kind, text = line[:1], line[1:]
        if kind == b"-":
            error: Exception = DefaultParser.parse_error(text.decode("utf-8", "replace"))  # type: ignore[no-untyped-call]
            raise error
        if line == b"$-1":
            return None
        if kind != b"$" or not text.isdigit() or (size := int(text)) > self._max_bytes:
            raise InvalidResponse(f"GETRANGE is answered by {line[:32]!r}")
        self._left = size + len(_END)
        # An empty range is that of a value that is missing.
        return ValueStream(size, self._pieces()) if size else None

    def end(self) -> None:
        """Read the rest of the last answer."""
        while self._left:
            self._take(min(self._left, PIECE))

    def _pieces(self) -> Iterator[memoryview]:
        while (size := self._left - len(_END)) > 0:
            yield self._take(min(size, PIECE))

    def _take(self, count: int) -> memoryview:
        """The next bytes of the answer, so many of them."""
        self._move()
        while self._end < count:
            self._receive(self._left)
        self._begin = count
        self._left -= count
        return self._buffer[:count]

    def _line(self) -> bytes:
        """The first line, without its end."""
        self._move()
        while True:
            line, end, _ = bytes(self._buffer[: min(self._end, _FIRST)]).partition(_END)
            if end:
                self._begin = len(line) + len(_END)
                return line
            if self._end >= _FIRST:
                raise InvalidResponse(f"GETRANGE is answered by {line[:32]!r}")
            self._receive(_FIRST)

    def _move(self) -> None:
        """What was not used begins the buffer."""
        rest = self._end - self._begin
        self._buffer[:rest] = self._buffer[self._begin : self._end]
        self._begin, self._end = 0, rest

    def _receive(self, end: int) -> None:
        """Read what has come, up to a place in the buffer."""
        try:
            count = self._socket().recv_into(self._buffer[self._end : end])
        except builtins.TimeoutError as error:
            raise TimeoutError("Timeout reading from socket") from error
        if not count:
            raise ConnectionError("the server closed the connection")
        # Once another thread has closed TLS, the socket gives what the server sent as it is.
        self._socket()
        self._end += count
