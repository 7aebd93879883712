"""Answers that are strings of some megabytes, read from the socket into one buffer.

redis-py's parsers copy an answer twice into memory that is new for each: its pages take longer to
be mapped than to be filled, and what is freed in pieces lets the process grow. Here nothing is
allocated for an answer.
"""

from __future__ import annotations

import builtins
import socket

from redis.connection import DefaultParser
from redis.exceptions import ConnectionError, InvalidResponse, TimeoutError

_END = b"\r\n"
_FIRST = 4096  # bytes that the first read of an answer asks for; an error's text may be that long


class Answers:
    """Reads answers of GETRANGE in RESP2, the protocol of all of our connections.

    Args:
        max_bytes: of an answer's string.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._buffer = memoryview(bytearray(_FIRST + max_bytes + len(_END)))
        self.forget()

    def forget(self) -> None:
        """The next answer comes from a connection that has nothing to read yet."""
        self._begin = self._end = 0  # of what was read beyond the last answer

    def read(self, connection: socket.socket) -> memoryview:
        """Returns the next answer's string, which is valid until the next one is read.

        It is empty where the server answers that there is none.

        Raises:
            redis.RedisError: the answer is an error, is none of GETRANGE, or does not come.
            OSError: the socket's.
        """
        rest = self._end - self._begin
        self._buffer[:rest] = self._buffer[self._begin : self._end]
        self._begin, self._end = 0, rest
        line = self._line(connection)
        begin = len(line) + len(_END)
        kind, text = line[:1], line[1:]
        if kind == b"-":
            self._begin = begin
            error: Exception = DefaultParser.parse_error(text.decode("utf-8", "replace"))  # type: ignore[no-untyped-call]
            raise error
        if line == b"$-1":
            self._begin = begin
            return self._buffer[:0]
        if kind != b"$" or not text.isdigit() or (size := int(text)) > self.max_bytes:
            raise InvalidResponse(f"GETRANGE is answered by {line[:32]!r}")
        end = begin + size
        self._begin = end + len(_END)
        while self._end < self._begin:
            self._receive(connection, self._begin)
        return self._buffer[begin:end]

    def _line(self, connection: socket.socket) -> bytes:
        """The first line, without its end."""
        while True:
            line, end, _ = bytes(self._buffer[: min(self._end, _FIRST)]).partition(_END)
            if end:
                return line
            if self._end >= _FIRST:
                raise InvalidResponse(f"GETRANGE is answered by {line[:32]!r}")
            self._receive(connection, _FIRST)

    def _receive(self, connection: socket.socket, end: int) -> None:
        """Read what has come, up to a place in the buffer."""
        try:
            count = connection.recv_into(self._buffer[self._end : end])
        except builtins.TimeoutError as error:
            raise TimeoutError("Timeout reading from socket") from error
        if not count:
            raise ConnectionError("the server closed the connection")
        self._end += count
