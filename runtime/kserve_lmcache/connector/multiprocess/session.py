"""The connection of a process of the engine to a cache server, across restarts of the server."""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from vllm.logger import init_logger

from kserve_lmcache import __version__
from kserve_lmcache.cache_server.announcement import announced
from kserve_lmcache.cache_server.choice import SHARED_MEMORY
from kserve_lmcache.cache_server.messages import Hello, Welcome
from kserve_lmcache.cache_server.rpc import CacheServerError, Call, Client
from kserve_lmcache.metrics.table import metric
from kserve_lmcache.tiers.guard.breaker import Breaker
from kserve_lmcache.tiers.guard.daemon_threads import start_supervised

logger = init_logger(__name__)

_CONNECT_SECONDS = 2.0
_HELLO_SECONDS = 0.5  # deadline
_HELLO_PAUSE = 1.0
TIER = "local_cpu"


@dataclass(frozen=True)
class Connection:
    """A server that answers.

    Attributes:
        client: calls it.
        welcome: what it is.
        memory: its shared memory; ``None`` where this process does not map it. It stays valid
            after the server's end.
    """

    client: Client
    welcome: Welcome
    memory: mmap.mmap | None


class Session:
    """Calls the server of a directory. Reconnects in the background. No method raises or waits.

    Args:
        directory: that the server is announced in.
        maps: whether this process maps the server's shared memory.
        prefill_rate: returns the engine's speed in tokens a second, or ``None``.
        on_connect: called with each new connection, before it is used. What it raises keeps the
            server from being used.
    """

    def __init__(
        self,
        directory: Path,
        maps: bool,
        prefill_rate: Callable[[], float | None] = lambda: None,
        on_connect: Callable[[Connection], None] = lambda _: None,
    ) -> None:
        self._directory = directory
        self._maps = maps
        self._prefill_rate = prefill_rate
        self._on_connect = on_connect
        self._connection: Connection | None = None
        self._ended = threading.Event()
        self._reason = "not connected yet"
        self._up = metric("up", tier=TIER)
        self._up.set(0)
        self._breaker = Breaker(
            self._connect,
            self._on_up,
            self._on_down,
            self._on_failure,
            self._on_bug,
            "cache-server",
        )
        start_supervised("cache-server-hello", self._greet, self._on_bug)

    @property
    def connection(self) -> Connection | None:
        """The server; ``None`` while it does not answer."""
        return self._connection if self._breaker.is_closed else None

    def wait(self, seconds: float) -> Connection | None:
        """Wait for a server. For the start: nothing else waits."""
        self._breaker.wait_closed(seconds)
        return self.connection

    def begin(
        self,
        connection: Connection,
        name: str,
        request: msgspec.Struct,
        seconds: float,
        patience: float | None = None,
    ) -> Call:
        """Begin a call. Its end is recorded for the breaker.

        Args:
            connection: to the server.
            name: of the call (:data:`.messages.CALLS`).
            request: the request.
            seconds: the deadline.
            patience: how many seconds the caller waits, when it waits less. What comes later is not
                recorded: the caller tells :meth:`late` when it waited in vain.
        """
        began = time.monotonic()
        call = connection.client.begin(name, request, seconds)

        def record(ended: Call) -> None:
            taken = time.monotonic() - began
            if patience is None or taken <= patience:
                self._record(connection, name, ended, taken / (patience or seconds))

        call.then(record)
        return call

    def late(self, connection: Connection, name: str) -> None:
        """Record that nobody waits any longer for the answer to a call."""
        if connection is self._connection:
            metric("failures_total", tier=TIER).inc()
            self._breaker.failed(name, "no answer in time")

    def _record(self, connection: Connection, name: str, call: Call, share: float) -> None:
        if connection is not self._connection or call.cancelled():
            return  # a server that is gone, or a call that says nothing about the server
        try:
            call.result()
        except CacheServerError as error:
            metric("failures_total", tier=TIER).inc()
            self._breaker.failed(name, str(error), at_once=error.is_gone)
        else:
            # A wait takes as long as the tiers below.
            self._breaker.succeeded(name, None if name == "wait" else share)

    def report(self) -> dict[str, Any]:
        """The state, as plain values."""
        connection = self.connection
        return {
            "name": "cache server",
            "up": connection is not None,
            "since": self._breaker.since,
            "reason": "" if connection is not None else self._reason,
            "incarnation": connection.welcome.incarnation if connection is not None else "",
        }

    def close(self) -> None:
        """Call no more."""
        self._ended.set()
        self._breaker.stop()
        if (connection := self._connection) is not None:
            connection.client.close()

    def _connect(self) -> None:
        """Connect to the server that is announced, or see that the known one answers.

        Raises:
            CacheServerError, OSError: no server answers.
        """
        found = announced(self._directory)
        if found is None:
            raise CacheServerError("no cache server is running")
        if found.version != __version__:
            raise CacheServerError(f"the cache server is of version {found.version}")
        known = self._connection
        hello = Hello(self._prefill_rate())
        if known is not None and known.welcome.incarnation == found.incarnation:
            known.client.call("hello", hello, _HELLO_SECONDS)
            return
        client = Client(self._directory / found.socket)
        try:
            welcome = client.call("hello", hello, _CONNECT_SECONDS)
            memory = _mapped(welcome) if self._maps else None
            connection = Connection(client, welcome, memory)
            self._on_connect(connection)
        except BaseException:
            client.close()
            raise
        self._connection = connection
        if known is not None:
            known.client.close()

    def _greet(self) -> None:
        """Notice a server that hangs or has ended before a request does."""
        while not self._ended.wait(_HELLO_PAUSE):
            if (connection := self.connection) is None:
                continue
            try:
                connection.client.call("hello", Hello(self._prefill_rate()), _HELLO_SECONDS)
            except CacheServerError as error:
                if connection is self._connection:
                    self._breaker.failed("hello", str(error), at_once=True)

    def _on_up(self) -> None:
        self._up.set(1)
        metric("connects_total", tier=TIER).inc()
        logger.info("The cache server answers")

    def _on_down(self, reason: str) -> None:
        self._reason = reason
        self._up.set(0)
        metric("opened_total", tier=TIER).inc()
        logger.warning("The cache server is not asked until it answers again: %s", reason)

    def _on_failure(self, reason: str) -> None:
        if reason != self._reason:
            self._reason = reason
            logger.warning("The cache server does not answer: %s", reason)

    def _on_bug(self, error: Exception) -> None:
        metric("exceptions_total", tier=TIER).inc()
        logger.error("Unexpected exception: %r", error, exc_info=error)


def _mapped(welcome: Welcome) -> mmap.mmap:
    """The server's shared memory, with all its pages."""
    descriptor = os.open(SHARED_MEMORY / welcome.segment, os.O_RDWR)
    try:
        return mmap.mmap(
            descriptor, welcome.size, flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
        )
    finally:
        os.close(descriptor)
