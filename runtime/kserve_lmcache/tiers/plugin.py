"""Connects the disk tier and the remote tier to LMCache, as its remote storage plugins.

LMCache imports this module by the name in its configuration (:mod:`.config.tier_plugins`). It
takes each tier for a connector to a remote store.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lmcache.v1.memory_management import MemoryFormat
from lmcache.v1.storage_backend.connector import ConnectorAdapter
from lmcache.v1.storage_backend.connector.base_connector import RemoteConnector

from kserve_lmcache.config.tier_plugins import DISK_PLUGIN, REMOTE_PLUGIN, TierPlugin
from kserve_lmcache.tiers.changes import OnChange
from kserve_lmcache.tiers.disk.directory import DiskDirectory
from kserve_lmcache.tiers.disk.names import DiskNames
from kserve_lmcache.tiers.disk.store import DiskStore
from kserve_lmcache.tiers.guard.codec import CorruptValueError, Layout, header_size
from kserve_lmcache.tiers.guard.presence import Presence
from kserve_lmcache.tiers.guard.store import CallKind, Store
from kserve_lmcache.tiers.guard.tier import Tier
from kserve_lmcache.tiers.lmcache.connectors import Connectors
from kserve_lmcache.tiers.lmcache.store import LMCacheStore
from kserve_lmcache.tiers.lmcache.values import value_size
from kserve_lmcache.tiers.redis.store import RedisStore

if TYPE_CHECKING:
    from lmcache.utils import CacheEngineKey
    from lmcache.v1.memory_management import MemoryObj
    from lmcache.v1.storage_backend.connector import ConnectorContext


class TierConnector(RemoteConnector):  # type: ignore[misc]
    """What LMCache calls. Every method delegates to a tier.

    Attributes:
        tier: made by a subclass.
    """

    tier: Tier

    def __init__(self, context: ConnectorContext) -> None:
        super().__init__(context.config, context.metadata)
        self._backend = context.local_cpu_backend
        tensors = zip(self.meta_dtypes, self.meta_shapes, strict=True)
        self._chunk_layout = _layout(self.meta_fmt, tensors)

    def batched_contains(self, keys: list[CacheEngineKey]) -> int:
        """Returns how many of ``keys``, counted from the first, can be loaded."""
        names = [key.to_string() for key in keys]
        self.learn(names)
        return self.tier.lookup(names)

    async def batched_get(self, keys: list[CacheEngineKey]) -> list[MemoryObj | None]:
        """Loads chunks, from the first up to one that fails. The rest are ``None``."""
        found = await self.batched_get_non_blocking("", keys)
        return [*found, *[None] * (len(keys) - len(found))]

    async def batched_put(self, keys: list[CacheEngineKey], memory_objs: list[MemoryObj]) -> None:
        """Queues chunks for writing. They stay in the local tier until they are written."""
        self.learn(key.to_string() for key in keys)
        for key, memory_obj in zip(keys, memory_objs, strict=True):
            memory_obj.ref_count_up()
            layout, payload = _value_of(memory_obj)
            self.tier.store(key.to_string(), layout, payload, memory_obj.ref_count_down)

    def watch(self, on_change: OnChange) -> None:
        """Tells from now on which chunks come into the tier, and which go."""
        raise NotImplementedError

    def learn(self, keys: Iterable[str]) -> None:
        """Takes keys of chunks that may be in the tier, now or later."""

    @property
    def is_listed(self) -> bool:
        """Whether the tier knows what it had at the start."""
        return True

    def prove(self, memory_obj: MemoryObj, wait: float) -> str:
        """Proves that the tier gives back a memory object. See :meth:`.Tier.prove`."""
        return self.tier.prove(*_value_of(memory_obj), wait)

    async def batched_async_contains(
        self, lookup_id: str, keys: list[CacheEngineKey], pin: bool = False
    ) -> int:
        """As :meth:`batched_contains`, for asynchronous loading."""
        return await asyncio.to_thread(self.batched_contains, keys)

    async def batched_get_non_blocking(
        self, lookup_id: str, keys: list[CacheEngineKey]
    ) -> list[MemoryObj]:
        """Loads chunks, from the first up to one that fails."""
        return await asyncio.to_thread(self.fetch, keys)

    def fetch(self, keys: Sequence[CacheEngineKey]) -> list[MemoryObj]:
        """Loads chunks, from the first up to one that fails. The caller gives them back."""
        return self.tier.load([key.to_string() for key in keys], self._make_room, _release)

    async def exists(self, key: CacheEngineKey) -> bool:
        """Returns whether the chunk can be loaded."""
        return await asyncio.to_thread(self.exists_sync, key)

    def exists_sync(self, key: CacheEngineKey) -> bool:
        """Returns whether the chunk can be loaded."""
        return self.batched_contains([key]) == 1

    async def get(self, key: CacheEngineKey) -> MemoryObj | None:
        """Loads a chunk."""
        return (await self.batched_get([key]))[0]

    async def put(self, key: CacheEngineKey, memory_obj: MemoryObj) -> None:
        """Queues a chunk for writing."""
        await self.batched_put([key], [memory_obj])

    def remove_sync(self, key: CacheEngineKey) -> bool:
        """Deletes a chunk in the background."""
        self.tier.delete(key.to_string())
        return True

    async def close(self) -> None:
        """Writes the queue, if that takes little time, and closes the store."""
        await asyncio.to_thread(self.tier.close)

    def support_batched_contains(self) -> bool:
        """Returns that the batched methods are implemented."""
        return True

    support_batched_get = support_batched_put = support_batched_contains

    def _make_room(self, layout: Layout, size: int) -> tuple[MemoryObj, memoryview] | None:
        """Makes room in the local tier; returns ``None`` when that has none."""
        shapes = [torch.Size(shape) for _, shape in layout.tensors]
        try:
            dtypes = [_dtype(name) for name, _ in layout.tensors]
            memory_format = MemoryFormat[layout.format]
        except KeyError:
            raise CorruptValueError(f"the layout {layout} is not known") from None
        memory_obj = self._backend.allocate(shapes, dtypes, memory_format, busy_loop=False)
        if memory_obj is None:
            return None
        try:
            return memory_obj, memoryview(_bytes_of(memory_obj))
        except BaseException:
            _release(memory_obj)
            raise

    # Last, since it hides the type ``list`` from what follows.
    async def list(self) -> list[str]:
        """Returns no keys: a store that replicas share may hold millions."""
        return []


class RemoteTierConnector(TierConnector):
    """The remote tier: a store that replicas share."""

    def __init__(self, context: ConnectorContext) -> None:
        super().__init__(context)
        remote, limits = REMOTE_PLUGIN.decode(context.config.extra_config)
        make_store: Callable[[CallKind], Store]
        if remote.speaks_redis:
            largest = header_size(self._chunk_layout) + self.full_chunk_size_bytes
            make_store = functools.partial(
                RedisStore, remote, limits, max_value_bytes=lambda: largest
            )
        else:
            size = value_size(self._chunk_layout, self.full_chunk_size_bytes)
            connectors = Connectors(
                remote.url, context.config, context.metadata, size, limits.connect
            )
            make_store = functools.partial(LMCacheStore, connectors, limits)
        chunk_tokens = context.config.chunk_size
        self.tier = Tier(remote.url, make_store, limits, chunk_tokens, self.full_chunk_size_bytes)
        self._presence: Presence | None = None

    def watch(self, on_change: OnChange) -> None:
        """Tells which chunks the store has, of those that this process has written or found."""
        self._presence = Presence(self.tier, on_change, self.tier.log_bug)

    async def close(self) -> None:
        """Writes the queue, if that takes little time, and closes the store."""
        if self._presence is not None:
            self._presence.close()
        await super().close()


class DiskTierConnector(TierConnector):
    """The disk tier: a directory of this machine."""

    def __init__(self, context: ConnectorContext) -> None:
        super().__init__(context)
        disk, limits = DISK_PLUGIN.decode(context.config.extra_config)
        # With MLA all workers have the same KV cache, which only the first one stores.
        worker = 0 if context.metadata.use_mla else context.metadata.worker_id
        self._directory = DiskDirectory(Path(disk.directory_of(worker)), disk.max_bytes)
        size = self.full_chunk_size_bytes
        self.tier = Tier(
            str(self._directory.path),
            functools.partial(DiskStore, self._directory),
            limits,
            context.config.chunk_size,
            size,
            name="disk",
            extra_report=self._directory.report,
        )
        self._names: DiskNames | None = None

    def watch(self, on_change: OnChange) -> None:
        """Tells which files come and go, once their keys are known."""
        self._names = DiskNames(self._directory.index, on_change)

    def learn(self, keys: Iterable[str]) -> None:
        """Takes keys whose files may be there, now or later."""
        if self._names is not None:
            self._names.learn(keys)

    @property
    def is_listed(self) -> bool:
        """Whether the directory has been scanned."""
        return self._directory.is_scanned.is_set()

    async def close(self) -> None:
        """Writes the queue, if that takes little time, and ends the scans of the directory."""
        await super().close()
        self._directory.close()


class RemoteTierAdapter(ConnectorAdapter):  # type: ignore[misc]
    """Makes the remote tier's connector for LMCache."""

    plugin: TierPlugin[Any] = REMOTE_PLUGIN
    connector: type[TierConnector] = RemoteTierConnector

    def __init__(self) -> None:
        super().__init__(f"plugin://{self.plugin.name}")

    def can_parse(self, url: str) -> bool:
        """Returns whether LMCache means this plugin. One plugin's name begins with the other's."""
        return bool(url == self.schema)

    def create_connector(self, context: ConnectorContext) -> RemoteConnector:
        """Makes the connector of this process."""
        return self.connector(context)


class DiskTierAdapter(RemoteTierAdapter):
    """Makes the disk tier's connector for LMCache."""

    plugin = DISK_PLUGIN
    connector = DiskTierConnector


def _release(memory_obj: MemoryObj) -> None:
    memory_obj.ref_count_down()


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise KeyError(name)
    return found


def _layout(
    memory_format: MemoryFormat, tensors: Iterable[tuple[torch.dtype, torch.Size]]
) -> Layout:
    return Layout(
        memory_format.name,
        tuple((str(dtype).removeprefix("torch."), tuple(shape)) for dtype, shape in tensors),
    )


def _value_of(memory_obj: MemoryObj) -> tuple[Layout, memoryview]:
    """Returns the layout and the memory of a memory object."""
    tensors = zip(memory_obj.get_dtypes(), memory_obj.get_shapes(), strict=True)
    layout = _layout(memory_obj.get_memory_format(), tensors)
    return layout, memoryview(_bytes_of(memory_obj))


def _bytes_of(memory_obj: MemoryObj) -> Any:
    """Returns the memory itself, as an array of bytes."""
    return memory_obj.raw_data.numpy()[: memory_obj.get_size()]
