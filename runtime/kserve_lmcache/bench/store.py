"""What a Redis sends, and how fast it could: the floor of a load from it.

Between two readings of ``INFO`` the store's ``total_net_output_bytes`` grows by what was loaded.
The same number of bytes is then read through a bare socket, by pipelined GETs into one buffer:
nothing that speaks Redis's protocol can be faster.
"""

from __future__ import annotations

import socket
import time
from types import TracebackType
from urllib.parse import unquote, urlsplit

from kserve_lmcache.errors import KServeLMCacheError, UsageError
from kserve_lmcache.redaction import redact_urls

_KEY = b"kserve-lmcache-bench:%d"
_PART = 4 * 2**20  # bytes of one value, about those of a chunk
_KEEP = 600  # seconds, should the run be killed


class StoreError(KServeLMCacheError):
    """The store does not answer as Redis does."""


class BareStore:
    """One connection to a Redis.

    Args:
        url: ``redis://[USER:PASSWORD@]HOST[:PORT]``.

    Raises:
        StoreError: it does not answer.
        UsageError: the URL is of another kind.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("redis", "valkey") or not parts.hostname:
            raise UsageError(f"--redis={redact_urls(url)} is not redis://HOST:PORT")
        self._stored = 0
        self._received = 0
        self._place = f"{parts.hostname}:{parts.port or 6379}"
        try:
            self._socket = socket.create_connection(
                (parts.hostname, parts.port or 6379), timeout=10
            )
            self._file = self._socket.makefile("rb")
        except OSError as error:
            raise StoreError(f"the store at {self._place} does not answer: {error}") from error
        if parts.password:
            user = [unquote(parts.username).encode()] if parts.username else []
            self._call(b"AUTH", *user, unquote(parts.password).encode())
        self._buffer = bytearray(_PART + 64)

    def sent_bytes(self) -> int:
        """What the store has sent to all its clients but this one since it started."""
        own = self._received
        for line in self._call(b"INFO", b"stats").splitlines():
            name, _, value = line.partition(b":")
            if name == b"total_net_output_bytes":
                return int(value) - own
        raise StoreError(f"the store at {self._place} does not say what it has sent")

    def read_seconds(self, count: int) -> float:
        """How long ``count`` bytes take, rounded up to whole values of 4 MiB."""
        parts = max(-(-count // _PART), 1)
        size = -(-count // parts)
        value = bytes(size)
        for number in range(parts):
            self._call(b"SET", _KEY % number, value, b"EX", b"%d" % _KEEP)
        self._stored = max(self._stored, parts)
        requests = b"".join(_encoded(b"GET", _KEY % number) for number in range(parts))
        answer = len(b"$%d\r\n" % size) + size + 2
        start = time.perf_counter()
        self._socket.sendall(requests)
        for _ in range(parts):
            self._receive(answer)
        return time.perf_counter() - start

    def _receive(self, count: int) -> None:
        view = memoryview(self._buffer)[:count]
        while view:
            received = self._file.readinto(view)
            if not received:
                raise StoreError(f"the store at {self._place} closed the connection")
            view = view[received:]
            self._received += received

    def _call(self, *words: bytes) -> bytes:
        try:
            self._socket.sendall(_encoded(*words))
            line = self._file.readline()
            self._received += len(line)
            if line.startswith(b"$"):
                value = self._file.read(int(line[1:]) + 2)
                self._received += len(value)
                return value[:-2]
        except OSError as error:
            raise StoreError(f"the store at {self._place} does not answer: {error}") from error
        if not line or line.startswith(b"-"):
            answer = line[1:].decode(errors="replace").strip()
            raise StoreError(f"the store at {self._place} refuses {words[0].decode()}: {answer}")
        return line[1:].strip()

    def __enter__(self) -> BareStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._stored:
                self._call(b"DEL", *(_KEY % number for number in range(self._stored)))
        except (StoreError, OSError):
            pass  # they expire
        self._file.close()
        self._socket.close()


def _encoded(*words: bytes) -> bytes:
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        parts += [b"$%d\r\n" % len(word), word, b"\r\n"]
    return b"".join(parts)
