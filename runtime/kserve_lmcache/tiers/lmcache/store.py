"""A store that LMCache has a connector for.

LMCache's connectors block, hang, hide errors and do not reconnect. Here a connector runs on an
event loop of its own, in the thread of one kind of call. After any failure the connector is
dropped, and the next call makes a new one. The deadline executor abandons a connector that hangs,
together with its threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
import time
from collections.abc import Awaitable, Coroutine, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from kserve_lmcache.compat.lmcache import connectors as private
from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.tiers.guard.codec import Buffer, strip_padding
from kserve_lmcache.tiers.guard.daemon_threads import DaemonThreadPool
from kserve_lmcache.tiers.guard.store import (
    CallKind,
    Entry,
    StoreError,
    StoreFullError,
    ValueStream,
    in_memory,
)
from kserve_lmcache.tiers.lmcache.connectors import Connectors
from kserve_lmcache.tiers.lmcache.values import Value, short_key

if TYPE_CHECKING:
    from lmcache.utils import CacheEngineKey

T = TypeVar("T")

# Their connectors take several calls at a time. That of lm:// would mix up the answers.
_CONCURRENT = ("fs", "s3", "azure", "infinistore")
# A probe writes this value and finds it again. That proves that the store keeps values, whichever
# errors its connector hides. Some connectors take values of the full size only.
_PROBE = b"kserve-lmcache: this store answers"
_SHORT_PROBES = ("lm", "fs", "s3", "azure", "mooncakestore")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_THREADS = 8  # for a connector's blocking calls
_CLOSE_SECONDS = 1.0
# After this share of its deadline, a lookup returns what it has found: half a prompt is a hit too.
_LOOKUP_SHARE = 0.6


class LMCacheStore:
    """A client with one connector. Implements :class:`~kserve_lmcache.tiers.guard.store.Store`.

    It must be made and used by one thread, in which its event loop runs.

    Args:
        connectors: to the store.
        limits: of a lookup and a batch.
        kind: of the calls. A lookup ends at the first missing value.
    """

    def __init__(self, connectors: Connectors, limits: TierLimits, kind: CallKind) -> None:
        self._connectors = connectors
        self._values = connectors.values
        self._scheme = connectors.scheme
        self._limits = limits
        self._is_lookup = kind == "lookup"
        self._threads = DaemonThreadPool(f"remote-{kind}-calls", _THREADS)
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(self._threads)
        self._connector: Any = None
        self._task: asyncio.Task[Any] | None = None
        self._aborted = False
        is_short = self._scheme in _SHORT_PROBES
        self._probe = self._values.short(_PROBE) if is_short else self._values.padded(_PROBE)
        self._probe_key = short_key(f"{_PROBE!r} of {self._probe.get_size()} bytes")

    def ping(self) -> None:
        """Connects where necessary, and waits for an answer."""
        self._run(self._ping())

    def sizes(self, keys: Sequence[str]) -> list[int]:
        """Returns a number above 0 for each value that exists."""
        return self._run(self._sizes([*map(short_key, keys)]))

    def read(self, keys: Sequence[str]) -> Iterator[ValueStream | None]:
        """Yields the values, which are read in batches."""
        window = max(1, self._limits.batch_bytes // self._values.size)
        if self._scheme == "lm":
            window = 1
        for begin in range(0, len(keys), window):
            for value in self._run(self._read([*map(short_key, keys[begin : begin + window])])):
                yield None if value is None else in_memory(value)

    def write(self, entries: Sequence[Entry]) -> None:
        """Writes the values, and checks that they exist then."""
        values = {short_key(e.key): self._values.padded(e.header, e.payload) for e in entries}
        self._run(self._write(values))

    def keep(self, keys: Sequence[str]) -> None:
        """Does nothing: LMCache's connectors know no time to live."""

    def delete(self, keys: Sequence[str]) -> None:
        """Deletes the values, where the connector can."""
        self._run(self._delete([*map(short_key, keys)]))

    def abort(self) -> None:
        """Cancels the call, and shuts down the socket of ``lm://``, which blocks the loop."""
        self._aborted = True
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._cancel)
        if (client := private.client_socket(self._connector)) is not None:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes the connector, and waits for threads that hang, so that they are counted."""
        self._drop()
        self._loop.close()
        self._threads.shutdown(wait=True)

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        task: asyncio.Task[T] = self._loop.create_task(coroutine)
        self._task = task
        if self._aborted:
            task.cancel()
        try:
            return self._loop.run_until_complete(task)
        except BaseException as error:
            self._drop()
            if isinstance(error, StoreError):
                raise
            raise StoreError(_reason(error)) from error
        finally:
            self._task = None

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _drop(self) -> None:
        """Leaves the connector, and cancels its tasks on the loop."""
        connector, self._connector = self._connector, None
        with contextlib.suppress(Exception):
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            if connector is not None and not self._connectors.is_shared:
                private.unblock_close(connector)
                tasks.add(self._loop.create_task(connector.close()))
            if tasks:
                waiting = asyncio.wait(tasks, timeout=_CLOSE_SECONDS)
                done, late = self._loop.run_until_complete(waiting)
                for task in late:
                    task.cancel()
                for task in done:  # otherwise asyncio logs what they raised
                    task.cancelled() or task.exception()

    async def _connected(self) -> Any:
        if self._connector is None:
            # LMCache too makes a connector in another thread than the loop's.
            connect = self._connectors.connect
            self._connector = await self._loop.run_in_executor(None, connect, self._loop)
        private.forget_sizes(self._connector)
        if (client := private.client_socket(self._connector)) is not None:
            # Header and value are sent apart. Without it, the value's end waits for 40 ms.
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # LMCache's server cannot restart while its port remembers an old connection.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return self._connector

    async def _ping(self) -> None:
        connector = await self._connected()
        if connector.support_ping() and (code := await connector.ping()) != 0:
            raise StoreError(f"ping answers {code}")
        if await self._finds_probe():
            return
        await connector.put(self._probe_key, self._probe)
        if not await self._finds_probe():
            raise StoreError("the store does not keep what is written to it")

    async def _finds_probe(self) -> bool:
        return await self._size(self._probe_key) > 0

    async def _sizes(self, keys: Sequence[CacheEngineKey]) -> list[int]:
        if self._scheme in _CONCURRENT:
            sizes = [*await asyncio.gather(*map(self._size, keys))]
        else:
            sizes = [0] * len(keys)
            end = time.monotonic() + _LOOKUP_SHARE * self._limits.lookup
            for position, key in enumerate(keys):
                sizes[position] = await self._size(key)
                if self._is_lookup and (sizes[position] == 0 or time.monotonic() > end):
                    break
        # The connector of lm:// raises errors. Others report a missing value for every error.
        if not any(sizes) and self._scheme != "lm" and not await self._finds_probe():
            raise StoreError("the store has lost what was written to it, or does not answer")
        return sizes

    async def _size(self, key: CacheEngineKey) -> int:
        found = await private.value_size(await self._connected(), key)
        if found < 0:
            raise StoreError(f"a lookup answers {found}")
        return found

    async def _read(self, keys: Sequence[CacheEngineKey]) -> list[Buffer | None]:
        connector = await self._connected()
        if connector.support_batched_get():
            # The connector of resp:// reads all values or none.
            wanted = [k for k in keys if self._scheme != "resp" or await self._size(k)]
            read = dict(zip(wanted, await connector.batched_get(wanted), strict=False))
            found = [read.get(key) for key in keys]
        else:
            found = await self._each(map(connector.get, keys))
        values: list[Buffer | None] = []
        for key, value in zip(keys, found, strict=True):
            if value is not None:
                values.append(strip_padding(value.byte_array))
            else:
                # A value that exists and cannot be read is corrupt, so that it is replaced.
                values.append(b"" if await self._size(key) else None)
        return values

    async def _write(self, values: Mapping[CacheEngineKey, Value]) -> None:
        connector = await self._connected()
        try:
            await self._each(connector.put(key, value) for key, value in values.items())
        except OSError as error:
            if error.errno in _FULL:
                raise StoreFullError(str(error)) from error
            raise
        # Some connectors hide errors, and lm:// does not answer a write.
        sizes = await self._each(map(self._size, values))
        if missing := sizes.count(0):
            problem = f"{missing} of {len(sizes)} chunks written are missing"
            raise StoreFullError(problem) if await self._finds_probe() else StoreError(problem)

    async def _delete(self, keys: Sequence[CacheEngineKey]) -> None:
        connector = await self._connected()
        for key in keys:
            await self._loop.run_in_executor(None, private.remove, connector, self._scheme, key)

    async def _each(self, calls: Iterator[Awaitable[T]]) -> list[T]:
        if self._scheme in _CONCURRENT:
            return [*await asyncio.gather(*calls)]
        return [await call for call in calls]


def _reason(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError):
        return "given up"
    if isinstance(error, struct.error):  # the connector of lm:// unpacks an empty answer
        return "the server closed the connection"
    return f"{type(error).__name__}: {error}"
