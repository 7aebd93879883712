"""A store of the Redis family, through redis-py."""

from __future__ import annotations

import contextlib
import itertools
import math
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import redis
from redis.connection import PythonRespSerializer
from redis.exceptions import OutOfMemoryError, RedisClusterException, ResponseError

from kserve_lmcache.config.stores import Remote
from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.identity.tag import Selection, Tag, of_key, takes
from kserve_lmcache.tiers.guard.codec import Buffer
from kserve_lmcache.tiers.guard.listing import Stored
from kserve_lmcache.tiers.guard.store import (
    CallKind,
    Entry,
    StoreError,
    StoreFullError,
    ValueStream,
    in_memory,
)
from kserve_lmcache.tiers.redis import client as redis_client
from kserve_lmcache.tiers.redis.answers import Answers
from kserve_lmcache.tiers.redis.client import KEY_PREFIX

# Every command that the tier sends, and that a user of an ACL must be allowed; a cluster's client
# asks for the layout as well. A refused CLIENT SETNAME does no harm.
COMMANDS = ("ping", "set", "strlen", "getrange", "expire", "unlink")
# Beside these, what the routes and the quotas of tenants ask.
STEERING_COMMANDS = ("scan", "ttl")
CLUSTER_COMMANDS = ("cluster|slots", "cluster|shards", "readonly", "command")
_CLIENT_NAME = "kserve-lmcache"
_READ_SIZE = 256 * 1024  # bytes that redis-py reads from a socket at a time
_MISSING = -2  # the answer of TTL
_PAGE = 1000  # keys that one SCAN looks at
_GLOB = "*?[]\\^-"
_MAX_COPIED = 6000  # bytes; a longer argument is sent without being copied first


@contextlib.contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except OutOfMemoryError as error:
        raise StoreFullError(str(error)) from error
    except (redis.RedisError, RedisClusterException, OSError) as error:
        raise StoreError(f"{type(error).__name__}: {error}") from error


def _with_store_errors(pieces: Iterator[Buffer]) -> Iterator[Buffer]:
    with _store_errors():
        yield from pieces


class RedisStore:
    """One client. Implements :class:`~kserve_lmcache.tiers.guard.store.Store`.

    Args:
        remote: must speak Redis.
        limits: of a batch and a connection, and the time to live of values.
        kind: of the calls. Names the connection in ``CLIENT LIST`` and chooses the timeout of
            each answer; the deadlines of the calls hold beside it.
        max_value_bytes: returns the bytes of a full chunk's value. Of a larger value, which only
            somebody else can have written, no more than one byte beyond is read.
    """

    def __init__(
        self,
        remote: Remote,
        limits: TierLimits,
        kind: CallKind,
        max_value_bytes: Callable[[], int],
    ) -> None:
        self._remote = remote
        self._max_value_bytes = max_value_bytes
        self._limits = limits
        timeouts = {"load": limits.load, "write": limits.write}
        self._timeout = timeouts.get(kind, limits.connect)
        self._name = f"{_CLIENT_NAME}-{socket.gethostname()}-{kind}"
        self._client: Any = None

    @_store_errors()
    def ping(self) -> None:
        """Connects where necessary, and waits for an answer."""
        self._connected().ping()

    @_store_errors()
    def sizes(self, keys: Sequence[str]) -> list[int]:
        """Returns the sizes; 0 for a value that is missing or is not a string."""
        answers = self._pipelined(lambda pipe, key: pipe.strlen(key), keys)
        return [0 if isinstance(answer, ResponseError) else answer for answer in answers]

    def read(self, keys: Sequence[str]) -> Iterator[ValueStream | None]:
        """Yields the values, each once it begins to arrive."""
        read = self._read_cluster if self._is_cluster else self._read_node
        with _store_errors():
            yield from read([KEY_PREFIX + key for key in keys])

    @_store_errors()
    def write(self, entries: Sequence[Entry]) -> None:
        """Writes the values, in one round trip."""
        pipeline = self._pipeline()
        for entry in entries:
            value = b"".join((entry.header, entry.payload))
            pipeline.set(KEY_PREFIX + entry.key, value, ex=self._limits.ttl or None)
        for answer in pipeline.execute(raise_on_error=False):
            if isinstance(answer, Exception):
                raise answer

    @_store_errors()
    def keep(self, keys: Sequence[str]) -> None:
        """Restarts the time to live of the values."""
        if self._limits.ttl:
            self._pipelined(lambda pipe, key: pipe.expire(key, self._limits.ttl), keys)

    @_store_errors()
    def delete(self, keys: Sequence[str]) -> None:
        """Deletes the values. The server frees their memory in the background."""
        self._pipelined(lambda pipe, key: pipe.unlink(key), keys)

    def find(self, worker: str, selection: Selection, measure: bool) -> Iterator[list[Stored]]:
        """Yields the values, about a thousand of the server's keys at a time."""
        with _store_errors():
            prefix = KEY_PREFIX.encode()
            scan = self._connected().scan_iter(match=_pattern(worker, selection), count=_PAGE)
            for page in _pages(scan, _PAGE):
                keys = [key.removeprefix(prefix).decode("utf-8", "replace") for key in page]
                wanted = [key for key in keys if takes(selection, key)]
                yield self._measured(wanted) if measure else [_stored(key) for key in wanted]

    @_store_errors()
    def remove(self, names: Sequence[str]) -> int:
        """Deletes values. The server frees their memory in the background."""
        answers = self._pipelined(lambda pipe, key: pipe.unlink(key), names)
        return sum(answer for answer in answers if not isinstance(answer, ResponseError))

    @_store_errors()
    def hold(self, keys: Sequence[str], seconds: float) -> int:
        """Raises the time to live of values that end sooner. Their next use may lower it again."""
        if not keys:
            return 0
        lives = self._pipelined(lambda pipe, key: pipe.ttl(key), keys)
        there = [key for key, life in zip(keys, lives, strict=True) if life != _MISSING]
        ending = [key for key, life in zip(keys, lives, strict=True) if 0 <= life < seconds]
        if ending:
            self._pipelined(lambda pipe, key: pipe.expire(key, math.ceil(seconds)), ending)
        return len(there)

    def forget(self, selected: Callable[[str], bool]) -> None:
        """Does nothing: the store has values alone."""

    def _measured(self, keys: Sequence[str]) -> list[Stored]:
        """The values that are there, with their sizes and ages."""
        sizes = self._pipelined(lambda pipe, key: pipe.strlen(key), keys)
        lives = self._pipelined(lambda pipe, key: pipe.ttl(key), keys)
        found = []
        for key, size, life in zip(keys, sizes, lives, strict=True):
            if not isinstance(size, ResponseError) and size:
                # Every write and every use set the time to live.
                is_known = self._limits.ttl and life >= 0
                age = max(0.0, self._limits.ttl - life) if is_known else None
                found.append(_stored(key, size, age))
        return found

    def abort(self) -> None:
        """Shuts the sockets down, which wakes the thread that waits for one."""
        client = self._client
        for pool in _pools(client) if client is not None else ():
            pool.disconnect(inuse_connections=True)

    def close(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            self._client.close()

    @property
    def _last_byte(self) -> int:
        """The end of a range: it belongs to the range, so it is one more than the largest value."""
        return self._max_value_bytes()

    @property
    def _window(self) -> int:
        """The number of values that a load has requested and not read."""
        return max(1, self._limits.batch_bytes // self._max_value_bytes())

    @property
    def _is_cluster(self) -> bool:
        return self._remote.scheme == "redis-cluster"

    def _pipeline(self) -> Any:
        client = self._connected()
        return client.pipeline() if self._is_cluster else client.pipeline(transaction=False)

    def _pipelined(self, command: Callable[[Any, str], object], keys: Sequence[str]) -> list[Any]:
        """Runs a command for each key, in one round trip.

        Returns:
            The answers. One may be an error about the type of a single value; other errors are
            raised, since the server refuses the commands as a whole.
        """
        pipeline = self._pipeline()
        for key in keys:
            command(pipeline, KEY_PREFIX + key)
        answers: list[Any] = pipeline.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, Exception) and not (
                isinstance(answer, ResponseError) and str(answer).startswith("WRONGTYPE")
            ):
                raise answer
        return answers

    def _connected(self) -> Any:
        """Returns the client, which the first call makes."""
        if self._client is None:
            try:
                self._client = self._connect(client_name=self._name)
            except ResponseError:  # an ACL or a proxy may refuse CLIENT SETNAME
                self._client = self._connect()
        return self._client

    def _connect(self, **options: Any) -> Any:
        client: Any = redis_client.connect(
            self._remote,
            self._timeout,
            socket_connect_timeout=self._limits.connect,
            socket_read_size=_READ_SIZE,
            **options,
        )
        if not self._is_cluster:
            # hiredis copies a value several times to pack it; this serializer does not.
            packer = PythonRespSerializer(_MAX_COPIED, client.get_encoder().encode)
            client.connection_pool.connection_kwargs["command_packer"] = packer
        try:
            client.ping()
        except BaseException:
            client.close()
            raise
        return client

    def _read_node(self, keys: Sequence[str]) -> Iterator[ValueStream | None]:
        """Yields one answer after the other, while the next ones are on their way."""
        last = self._last_byte
        pool = self._connected().connection_pool
        connection = pool.get_connection()
        done = False
        try:
            # After abort() the connection would connect again, where nothing was asked for.
            channel = redis_client.socket_of(connection)
            answers = Answers(lambda: redis_client.socket_of(connection), last + 1)
            waiting: deque[str] = deque(keys)
            requested = 0
            while waiting or requested:
                room = min(self._window - requested, len(waiting))
                more = [waiting.popleft() for _ in range(room)]
                if more:
                    commands = [("GETRANGE", key, 0, last) for key in more]
                    channel.sendall(b"".join(connection.pack_commands(commands)))
                    requested += len(more)
                stream = answers.read()
                requested -= 1
                yield stream and ValueStream(stream.size, _with_store_errors(stream.pieces))
            answers.end()
            done = True
        finally:
            if not done:  # answers are still on their way
                connection.disconnect()
            pool.release(connection)

    def _read_cluster(self, keys: Sequence[str]) -> Iterator[ValueStream | None]:
        """Yields one batch of answers after the other, from all nodes."""
        for position in range(0, len(keys), self._window):
            pipeline = self._pipeline()
            for key in keys[position : position + self._window]:
                pipeline.getrange(key, 0, self._last_byte)
            # An empty range is that of a value that is missing.
            yield from (in_memory(value) if value else None for value in pipeline.execute())


def _stored(key: str, size: int = 0, age: float | None = None) -> Stored:
    return Stored(key, of_key(key) or Tag(), size, age)


def _pattern(worker: str, selection: Selection) -> str:
    """The pattern of SCAN that fits all of the keys, and perhaps others."""
    begin = "".join(f"\\{char}" if char in _GLOB else char for char in KEY_PREFIX + worker)
    if selection.has_plain:
        return f"{begin}*"
    parts = (selection.salt, selection.tenant, selection.adapter)
    return f"{begin}*%{'.'.join('*' if part is None else part for part in parts)}"


def _pages(keys: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    iterator = iter(keys)
    while page := list(itertools.islice(iterator, size)):
        yield page


def _pools(client: Any) -> Iterator[Any]:
    nodes = client.get_nodes() if hasattr(client, "get_nodes") else [client]
    for node in nodes:
        connection = getattr(node, "redis_connection", node)
        if connection is not None:
            yield connection.connection_pool
