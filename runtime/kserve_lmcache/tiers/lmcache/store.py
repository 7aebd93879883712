"""A store that LMCache has a connector to: ``lm://``, ``fs://``, ``s3://``, Mooncake, …

Those connectors block, hang, swallow errors and do not reconnect. Here one of them runs on an
event loop of one lane's own (see :mod:`.lane`). Whatever goes wrong, the connector is dropped
and the next call makes a new one; what hangs is abandoned, with its threads, by the lane.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from lmcache.v1.storage_backend.connector.base_connector import RemoteConnector

from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.tiers.guard.codec import Buffer, strip_padding
from kserve_lmcache.tiers.guard.store import Entry, StoreError, StoreFullError
from kserve_lmcache.tiers.lmcache.daemon_threads import DaemonThreads
from kserve_lmcache.tiers.lmcache.objects import Connectors, key_of

if TYPE_CHECKING:
    from lmcache.utils import CacheEngineKey

T = TypeVar("T")

# Whose connectors take several calls at a time. That of lm:// would mix the answers up.
_CONCURRENT = ("fs", "s3", "azure", "infinistore")
# What asks for a value's size, where the connector's own question blocks or remembers answers.
_SIZE_OF = {"s3": "_get_object_size_async", "azure": "_get_blob_size_async"}
# Deletes a value, where LMCache's connector cannot and the client below it can.
_REMOVE: dict[str, Callable[[Any, str], object]] = {
    "mooncakestore": lambda connector, key: _remove_from_mooncake(connector.store, key),
    "infinistore": lambda connector, key: connector.rdma_conn.delete_keys([key]),
}
# A value that proves that the store keeps what it is given, whichever errors are swallowed.
_MARK = b"kserve-lmcache: this store answers"
_SHORT_MARKS = ("lm", "fs", "s3", "azure", "mooncakestore")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_THREADS = 8  # for a connector's blocking calls
_CLOSING = 1.0  # seconds
# A lookup says in this share of its time what it knows by then: half a prompt is a hit as well.
_PATIENCE = 0.6


class LMCacheStore:
    """One connector; see :class:`~kserve_lmcache.tiers.guard.store.Store`.

    Made and used by one thread, which its loop runs in.

    Args:
        connectors: to the store.
        limits: of a lookup and a batch.
        lane: whose calls it serves. For lookups, what follows the first value that is not there
            is not asked for.
    """

    def __init__(self, connectors: Connectors, limits: TierLimits, lane: str) -> None:
        self._connectors = connectors
        self._values = connectors.values
        self._scheme = connectors.scheme
        self._limits = limits
        self._is_lookup = lane == "lookup"
        self._threads = DaemonThreads(f"remote-{lane}-calls", _THREADS)
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(self._threads)
        self._connector: Any = None
        self._task: asyncio.Task[Any] | None = None
        self._aborted = False
        whole = self._scheme not in _SHORT_MARKS
        self._mark = self._values.whole(_MARK) if whole else self._values.short(_MARK)
        self._mark_key = key_of(f"{_MARK!r} of {self._mark.get_size()} bytes")

    def ping(self) -> None:
        """Connect if need be, and get an answer."""
        self._run(self._ping())

    def sizes(self, keys: Sequence[str]) -> list[int]:
        """Not 0 for what is there."""
        return self._run(self._sizes([key_of(key) for key in keys]))

    def read(self, keys: Sequence[str]) -> Iterator[Buffer | None]:
        """The values, a batch at a time."""
        window = max(1, self._limits.batch_bytes // self._values.size)
        if self._scheme == "lm":
            window = 1
        for begin in range(0, len(keys), window):
            yield from self._run(self._read([key_of(key) for key in keys[begin : begin + window]]))

    def write(self, entries: Sequence[Entry]) -> None:
        """Write the values, and see that they are there."""
        values = {
            key_of(entry.key): self._values.whole(entry.header, entry.payload) for entry in entries
        }
        self._run(self._write(values))

    def keep(self, keys: Sequence[str]) -> None:
        """Nothing: LMCache's connectors know no time to live."""

    def delete(self, keys: Sequence[str]) -> None:
        """Delete the values, where the connector can."""
        self._run(self._delete([key_of(key) for key in keys]))

    def abort(self) -> None:
        """Cancel the call, and shut the socket of ``lm://``, in whose calls the loop blocks."""
        self._aborted = True
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._cancel)
        if (client := self._socket()) is not None:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connector; wait for what hangs, so that the lane knows about it."""
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
        """Leave the connector, and whatever it still does on the loop."""
        connector, self._connector = self._connector, None
        with contextlib.suppress(Exception):
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            if connector is not None and not self._connectors.are_one:
                _unblock_close(connector)
                tasks.add(self._loop.create_task(connector.close()))
            if tasks:
                done, late = self._loop.run_until_complete(asyncio.wait(tasks, timeout=_CLOSING))
                for task in late:
                    task.cancel()
                for task in done:  # or asyncio logs what they raised
                    task.cancelled() or task.exception()

    async def _connected(self) -> Any:
        if self._connector is None:
            # LMCache as well makes it while the loop runs, in another thread.
            connect = self._connectors.connect
            self._connector = await self._loop.run_in_executor(None, connect, self._loop)
        cache = getattr(self._connector, "object_size_cache", None)
        if cache:  # what others delete or write since is never seen
            cache.clear()
        if (client := self._socket()) is not None:
            # Header and value are sent apart: without it, the value's end waits for 40 ms.
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # LMCache's server cannot start anew while its port remembers a connection of the old.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return self._connector

    def _socket(self) -> socket.socket | None:
        """That of ``lm://``."""
        client = getattr(self._connector, "client_socket", None)
        return client if isinstance(client, socket.socket) else None

    async def _ping(self) -> None:
        connector = await self._connected()
        if connector.support_ping() and (code := await connector.ping()) != 0:
            raise StoreError(f"ping answers {code}")
        if await self._is_marked():
            return
        await connector.put(self._mark_key, self._mark)
        if not await self._is_marked():
            raise StoreError("it does not keep what is written to it")

    async def _is_marked(self) -> bool:
        return await self._size(self._mark_key) > 0

    async def _sizes(self, keys: Sequence[CacheEngineKey]) -> list[int]:
        if self._scheme in _CONCURRENT:
            sizes = [*await asyncio.gather(*map(self._size, keys))]
        else:
            sizes = await self._sizes_in_turn(keys)
        # The server of lm:// has answered; others say "not there" for every error.
        if not any(sizes) and self._scheme != "lm" and not await self._is_marked():
            raise StoreError("it has lost what was written to it, or does not answer")
        return sizes

    async def _sizes_in_turn(self, keys: Sequence[CacheEngineKey]) -> list[int]:
        until = time.monotonic() + _PATIENCE * self._limits.lookup
        sizes = [0] * len(keys)
        for position, key in enumerate(keys):
            sizes[position] = await self._size(key)
            if self._is_lookup and (sizes[position] == 0 or time.monotonic() > until):
                break
        return sizes

    async def _size(self, key: CacheEngineKey) -> int:
        connector = await self._connected()
        ask = getattr(connector, _SIZE_OF.get(self._scheme, ""), None)
        found = await (connector.exists(key) if ask is None else ask(key.to_string()))
        if found < 0:  # an error code of Mooncake's
            raise StoreError(f"a lookup answers {found}")
        return int(found)

    async def _read(self, keys: Sequence[CacheEngineKey]) -> list[Buffer | None]:
        connector = await self._connected()
        if connector.support_batched_get():
            # That of resp:// reads all of them or none.
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
                # There and not readable, it is to be replaced: no value, and not a missing one.
                values.append(b"" if await self._size(key) else None)
        return values

    async def _write(self, values: dict[CacheEngineKey, Any]) -> None:
        connector = await self._connected()
        try:
            await self._each(connector.put(key, value) for key, value in values.items())
        except OSError as error:
            if error.errno in _FULL:
                raise StoreFullError(str(error)) from error
            raise
        # Some connectors swallow what went wrong, and lm:// has no answer to a write.
        sizes = await self._each(map(self._size, values))
        if missing := sizes.count(0):
            what = f"{missing} of {len(sizes)} chunks written are not there"
            raise StoreFullError(what) if await self._is_marked() else StoreError(what)

    async def _delete(self, keys: Sequence[CacheEngineKey]) -> None:
        connector = await self._connected()
        for key in keys:
            if type(connector).remove_sync is not RemoteConnector.remove_sync:
                with contextlib.suppress(NotImplementedError):
                    await self._loop.run_in_executor(None, connector.remove_sync, key)
            elif (remove := _REMOVE.get(self._scheme)) is not None:
                await self._loop.run_in_executor(None, remove, connector, key.to_string())

    async def _each(self, calls: Iterator[Awaitable[T]]) -> list[T]:
        if self._scheme in _CONCURRENT:
            return [*await asyncio.gather(*calls)]
        return [await call for call in calls]


def _unblock_close(connector: Any) -> None:
    """LMCache's executor ends by waiting, on the loop, for what that loop has to do."""
    executor = getattr(connector, "pq_executor", None)
    if executor is not None:
        executor.shutdown = lambda wait=True: executor.shutdown_async(wait=False)


def _remove_from_mooncake(store: Any, key: str) -> None:
    try:
        store.remove(key, True)  # although somebody may just have read it
    except TypeError:  # an older one
        store.remove(key)


def _reason(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError):
        return "given up"
    if isinstance(error, struct.error):  # lm:// takes nothing for an answer
        return "the server closed the connection"
    return f"{type(error).__name__}: {error}"
