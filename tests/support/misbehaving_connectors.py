"""Stand-ins for connectors of LMCache whose stores, or whose errors, cannot exist here.

LMCache finds them by ``external://host:0/tests.support.misbehaving_connectors/?connector_name=…``.
"""

from __future__ import annotations

import asyncio
import errno
import threading
from typing import Any

from lmcache.v1.storage_backend.connector.base_connector import RemoteConnector


def url_of(connector: type[RemoteConnector]) -> str:
    return f"external://host:0/{__name__}/?connector_name={connector.__name__}"


class _InMemory(RemoteConnector):  # type: ignore[misc]
    """Keeps values in this process, for all of its instances."""

    kept: dict[str, Any]

    def __init__(self, loop: Any, local_cpu_backend: Any, config: Any) -> None:
        super().__init__(local_cpu_backend.config, local_cpu_backend.metadata)

    def __init_subclass__(cls) -> None:
        cls.kept = {}

    async def exists(self, key: Any) -> bool:
        return key.to_string() in self.kept

    def exists_sync(self, key: Any) -> bool:
        return key.to_string() in self.kept

    async def get(self, key: Any) -> Any:
        return self.kept.get(key.to_string())

    async def put(self, key: Any, memory_obj: Any) -> None:
        self.kept[key.to_string()] = memory_obj

    async def list(self) -> list[str]:
        return [*self.kept]

    async def close(self) -> None:
        pass


class HangingConnector(_InMemory):
    """Hangs, once told to, in its loop's thread; what waits is let go by ``Event.set``."""

    hangs = False
    let_go = threading.Event()

    async def exists(self, key: Any) -> bool:
        if type(self).hangs:
            self.let_go.wait()
        return await super().exists(key)


class HangingInAThreadConnector(HangingConnector):
    """Hangs, once told to, in another thread than its loop's."""

    hangs = False
    let_go = threading.Event()

    async def exists(self, key: Any) -> bool:
        if type(self).hangs:
            await asyncio.to_thread(self.let_go.wait)
        return await super(HangingConnector, self).exists(key)


class WaitingConnector(_InMemory):
    """Waits for ever, once told to, as a coroutine."""

    hangs = False

    async def exists(self, key: Any) -> bool:
        if type(self).hangs:
            await asyncio.Event().wait()
        return await super().exists(key)


class FullConnector(_InMemory):
    """Has room for a single value, its file system being full then."""

    async def put(self, key: Any, memory_obj: Any) -> None:
        if self.kept:
            raise OSError(errno.ENOSPC, "No space left on device")
        await super().put(key, memory_obj)


class ForgetfulConnector(_InMemory):
    """Keeps a single value and swallows what goes wrong with others, as that of S3 does."""

    async def put(self, key: Any, memory_obj: Any) -> None:
        if not self.kept:
            await super().put(key, memory_obj)


class DeafConnector(_InMemory):
    """Says "not there" for every error, as that of S3 does."""

    fails = False

    async def exists(self, key: Any) -> bool:
        return not type(self).fails and await super().exists(key)


class ErrorCodeConnector(_InMemory):
    """Answers a lookup that fails by a negative number, as Mooncake does."""

    fails = False

    async def exists(self, key: Any) -> Any:
        return -900 if type(self).fails else await super().exists(key)
