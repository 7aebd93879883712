"""A store of the Redis family, by redis-py: one node, a cluster, or what the sentinels name."""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import redis
from redis.connection import PythonRespSerializer
from redis.exceptions import OutOfMemoryError, RedisClusterException, ResponseError

from kserve_lmcache.config.stores import Remote
from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.tiers.guard.codec import Buffer
from kserve_lmcache.tiers.guard.store import Entry, StoreError, StoreFullError
from kserve_lmcache.tiers.redis import client as redis_client
from kserve_lmcache.tiers.redis.client import KEY_PREFIX

_CLIENT_NAME = "kserve-lmcache"
_READ_SIZE = 256 * 1024  # bytes read from a socket at a time
_LONGEST_COPIED = 6000  # bytes of an argument that is copied to be sent with others


@contextlib.contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except OutOfMemoryError as error:
        raise StoreFullError(str(error)) from error
    except (redis.RedisError, RedisClusterException, OSError) as error:
        raise StoreError(f"{type(error).__name__}: {error}") from error


class RedisStore:
    """One client; see :class:`~kserve_lmcache.tiers.guard.store.Store`.

    Args:
        remote: must speak Redis.
        limits: of a batch and a connection, and how long a chunk stays.
        patience: seconds for each answer of the server, beside the deadlines of the calls.
        name: of the connection, for ``CLIENT LIST``.
    """

    def __init__(self, remote: Remote, limits: TierLimits, patience: float, name: str) -> None:
        self._remote = remote
        self._limits = limits
        self._patience = patience
        self._name = f"{_CLIENT_NAME}-{socket.gethostname()}-{name}"
        self._client: Any = None

    @_store_errors()
    def ping(self) -> None:
        """Connect if need be, and get an answer."""
        self._connected().ping()

    @_store_errors()
    def sizes(self, keys: Sequence[str]) -> list[int]:
        """Bytes of each value; 0 where there is none, or something that is no chunk."""
        pipeline = self._pipeline()
        for key in keys:
            pipeline.strlen(KEY_PREFIX + key)
        answers = pipeline.execute(raise_on_error=False)
        return [0 if isinstance(answer, ResponseError) else answer for answer in _checked(answers)]

    def read(self, keys: Sequence[str]) -> Iterator[Buffer | None]:
        """The values, each as soon as it is there."""
        read = self._read_cluster if self._is_cluster else self._read_node
        with _store_errors():
            yield from read([KEY_PREFIX + key for key in keys])

    @_store_errors()
    def write(self, entries: Sequence[Entry]) -> None:
        """Write the values, in one round trip."""
        pipeline = self._pipeline()
        for entry in entries:
            value = b"".join((entry.header, entry.payload))
            pipeline.set(KEY_PREFIX + entry.key, value, ex=self._limits.ttl or None)
        for answer in pipeline.execute(raise_on_error=False):
            if isinstance(answer, Exception):
                raise answer

    @_store_errors()
    def keep(self, keys: Sequence[str]) -> None:
        """Begin the values' time to live anew."""
        if not self._limits.ttl:
            return
        pipeline = self._pipeline()
        for key in keys:
            pipeline.expire(KEY_PREFIX + key, self._limits.ttl)
        _checked(pipeline.execute(raise_on_error=False))

    @_store_errors()
    def delete(self, keys: Sequence[str]) -> None:
        """Delete the values; the server frees their memory in the background."""
        pipeline = self._pipeline()
        for key in keys:
            pipeline.unlink(KEY_PREFIX + key)
        _checked(pipeline.execute(raise_on_error=False))

    def abort(self) -> None:
        """Shut the sockets, which wakes the thread that waits on one."""
        client = self._client
        for pool in _pools(client) if client is not None else ():
            pool.disconnect(inuse_connections=True)

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()

    @property
    def _is_cluster(self) -> bool:
        return self._remote.scheme == "redis-cluster"

    def _pipeline(self) -> Any:
        client = self._connected()
        return client.pipeline() if self._is_cluster else client.pipeline(transaction=False)

    def _connected(self) -> Any:
        """The client; made, the first time, with as much as the server grants."""
        if self._client is not None:
            return self._client
        options = {"protocol": 3, "client_name": self._name, "socket_read_size": _READ_SIZE}
        while True:
            client: Any = redis_client.connect(
                self._remote,
                self._patience,
                socket_connect_timeout=self._limits.connect,
                **options,
            )
            if not self._is_cluster:
                # hiredis packs a value by copying it several times; this one sends it as it is.
                encode = client.get_encoder().encode
                packer = PythonRespSerializer(_LONGEST_COPIED, encode)
                client.connection_pool.connection_kwargs["command_packer"] = packer
            try:
                client.ping()
            except ResponseError as error:
                client.close()
                if not _grants_less(error, options):
                    raise
            except BaseException:
                client.close()
                raise
            else:
                self._client = client
                return client

    def _read_node(self, keys: Sequence[str]) -> Iterator[Buffer | None]:
        """One answer after the other, while the next are under way."""
        pool = self._connected().connection_pool
        connection = pool.get_connection()
        done = False
        try:
            waiting: deque[str] = deque(keys)
            asked, largest = 0, 0
            while waiting or asked:
                # One value's size tells how many may be under way.
                window = max(1, self._limits.batch_bytes // largest) if largest else 1
                more = [waiting.popleft() for _ in range(min(window - asked, len(waiting)))]
                if more:
                    commands = [("GET", key) for key in more]
                    connection.send_packed_command(connection.pack_commands(commands))
                    asked += len(more)
                value = connection.read_response(disable_decoding=True)
                asked -= 1
                largest = max(largest, len(value or b""))
                yield value
            done = True
        finally:
            if not done:  # answers are still under way
                connection.disconnect()
            pool.release(connection)

    def _read_cluster(self, keys: Sequence[str]) -> Iterator[Buffer | None]:
        """A batch of answers after the other, from all nodes."""
        window, position = 1, 0
        while position < len(keys):
            pipeline = self._pipeline()
            for key in keys[position : position + window]:
                pipeline.get(key)
            values = pipeline.execute()
            yield from values
            position += window
            largest = max((len(value or b"") for value in values), default=0)
            window = max(1, self._limits.batch_bytes // max(1, largest))


def _pools(client: Any) -> Iterator[Any]:
    nodes = client.get_nodes() if hasattr(client, "get_nodes") else [client]
    for node in nodes:
        connection = getattr(node, "redis_connection", node)
        if connection is not None:
            yield connection.connection_pool


def _grants_less(error: ResponseError, options: dict[str, Any]) -> bool:
    """Leave out what the server refused of ``options``; false where nothing is left to try."""
    text = str(error).lower()
    if "protocol" in options and ("hello" in text or "noproto" in text):
        del options["protocol"]
    elif "client_name" in options and ("setname" in text or "'client" in text):
        del options["client_name"]
    else:
        return False
    return True


def _checked(answers: list[Any]) -> list[Any]:
    """``answers``, where the server as a whole does not refuse."""
    for answer in answers:
        if isinstance(answer, Exception) and not (
            isinstance(answer, ResponseError) and str(answer).startswith("WRONGTYPE")
        ):
            raise answer
    return answers
