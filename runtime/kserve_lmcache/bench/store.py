"""The bytes that a Redis sends, and the time that reading them through a bare socket takes.

That time is a lower bound: GETs into one buffer, which stays in the processor's cache, and nothing
done with the values.
"""

from __future__ import annotations

import time
from typing import Any

import redis

from kserve_lmcache.bench.records import BenchmarkError
from kserve_lmcache.config import store_url
from kserve_lmcache.config.store_url import StoreURLError
from kserve_lmcache.config.stores import Remote
from kserve_lmcache.errors import UsageError
from kserve_lmcache.tiers.guard.store import PIECE
from kserve_lmcache.tiers.redis import client as redis_client

_PART = 4 * 2**20  # bytes of one value: about one chunk
_KEEP_SECONDS = 600  # should the run be killed
_TIMEOUT = 60.0  # seconds for each answer
_SCHEMES = ("redis", "rediss", "valkey", "valkeys", "unix")  # of one server


def remote_of(url: str) -> Remote:
    """The Redis of the flag ``--redis``.

    Raises:
        UsageError: the URL does not fit the grammar of :mod:`kserve_lmcache.config.store_url`, or
            names no single server.
    """
    try:
        parsed = store_url.parse(url)
    except StoreURLError as error:
        faults = "; ".join(f"it {message}. {fix}" for message, fix in error.faults)
        raise UsageError(f"--redis={store_url.shown(url)} cannot be used: {faults}") from None
    if parsed.scheme not in _SCHEMES:
        schemes = ", ".join(f"{name}://" for name in _SCHEMES)
        raise UsageError(f"--redis={store_url.shown(url)} names no single Redis: use {schemes}")
    return Remote(parsed.bare, "--redis", parsed.username, parsed.password)


class BareStore:
    """One connection to a Redis. Every method raises ``BenchmarkError`` if the Redis is gone.

    Args:
        remote: the Redis (:func:`remote_of`).
    """

    def __init__(self, remote: Remote) -> None:
        self._url = remote.url
        address = next(iter(remote.redis_location().addresses), None)
        client = redis_client.node_client(remote, address, _TIMEOUT)
        self._connection: Any = client.connection_pool.make_connection()
        self._call("PING")

    def sent_bytes(self) -> tuple[int, int]:
        """Bytes that the store has sent since its start, without and with this answer."""
        text = self._call("INFO", "stats")
        stats = dict(line.partition(b":")[::2] for line in text.splitlines())
        sent = int(stats[b"total_net_output_bytes"])
        return sent, sent + len(_answer(text))

    def read_seconds(self, count: int) -> float:
        """Seconds for ``count`` bytes, in equal values of at most 4 MiB."""
        parts = -(-count // _PART)
        value = bytes(-(-count // parts))
        keys = [f"kserve-lmcache-bench:{number}" for number in range(parts)]
        for key in keys:
            self._call("SET", key, value, "EX", _KEEP_SECONDS)
        asked = [b"".join(self._connection.pack_command("GET", key)) for key in keys]
        size, bare = len(_answer(value)), self._connection._sock
        piece = memoryview(bytearray(PIECE))
        start = time.perf_counter()
        # Two at a time. A Redis allocates memory for each answer that it cannot send yet.
        bare.sendall(asked[0])
        for following in (*asked[1:], b""):
            bare.sendall(following)
            left = size
            while left:
                if not (came := bare.recv_into(piece[:left])):
                    raise BenchmarkError(f"the store {self._url} closed the connection")
                left -= came
        seconds = time.perf_counter() - start
        self._call("DEL", *keys)
        return seconds

    def _call(self, *words: Any) -> Any:
        try:
            self._connection.send_command(*words)
            return self._connection.read_response()
        except (redis.RedisError, OSError) as error:
            raise BenchmarkError(f"the store {self._url} refuses {words[0]}: {error}") from error


def _answer(value: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(value), value)
