"""How LMCache uses our tiers: connectors behind its ``remote_storage_plugins``.

The only place of the tiers that knows LMCache (0.5.1 to 0.5.6), beside :mod:`.lmcache_store` and
:mod:`.lmcache_objects`, which use LMCache's connectors to other stores.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
from lmcache.v1.memory_management import MemoryFormat
from lmcache.v1.storage_backend.connector import ConnectorAdapter
from lmcache.v1.storage_backend.connector.base_connector import RemoteConnector

from kserve_lmcache.config.stores import Remote
from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.config.tier_plugins import DISK_PLUGIN, REMOTE_PLUGIN
from kserve_lmcache.tiers.disk.directory import DiskDirectory
from kserve_lmcache.tiers.disk.store import DiskStore
from kserve_lmcache.tiers.guard.codec import Layout, header_size
from kserve_lmcache.tiers.guard.store import Store
from kserve_lmcache.tiers.guard.tier import Tier
from kserve_lmcache.tiers.lmcache.objects import Connectors, value_bytes
from kserve_lmcache.tiers.lmcache.store import LMCacheStore
from kserve_lmcache.tiers.redis.store import RedisStore

if TYPE_CHECKING:
    from lmcache.utils import CacheEngineKey
    from lmcache.v1.memory_management import MemoryObj
    from lmcache.v1.storage_backend.connector import ConnectorContext


class _Adapter(ConnectorAdapter):  # type: ignore[misc]
    """Makes a connector, from what :mod:`.options` wrote."""

    def __init__(self, plugin: str, make: Callable[[ConnectorContext], RemoteConnector]) -> None:
        super().__init__(f"plugin://{plugin}")
        self._make = make

    def can_parse(self, url: str) -> bool:
        """Whether it is this plugin's; the name of one begins as that of the other does."""
        return bool(url == self.schema)

    def create_connector(self, context: ConnectorContext) -> RemoteConnector:
        """The connector of this process."""
        return self._make(context)


class RemoteTierAdapter(_Adapter):
    """Makes the remote tier."""

    def __init__(self) -> None:
        super().__init__(REMOTE_PLUGIN.name, RemoteTierConnector)


class DiskTierAdapter(_Adapter):
    """Makes the disk tier."""

    def __init__(self) -> None:
        super().__init__(DISK_PLUGIN.name, DiskTierConnector)


class TierConnector(RemoteConnector):  # type: ignore[misc]
    """LMCache's side of a :class:`~kserve_lmcache.tiers.guard.tier.RemoteTier`."""

    def __init__(self, context: ConnectorContext) -> None:
        super().__init__(context.config, context.metadata)
        self._backend = context.local_cpu_backend
        tensors = zip(self.meta_dtypes, self.meta_shapes, strict=True)
        self._whole = _layout_of(self.meta_fmt, tensors)
        self.tier = self._make_tier(context)

    def _make_tier(self, context: ConnectorContext) -> Tier:
        raise NotImplementedError

    def batched_contains(self, keys: list[CacheEngineKey]) -> int:
        """How many of ``keys``, from the first one on, can be loaded."""
        return self.tier.lookup([key.to_string() for key in keys])

    async def batched_get(self, keys: list[CacheEngineKey]) -> list[MemoryObj | None]:
        """The chunks, from the first one on as far as they come; then ``None``."""
        found = await self._load(keys)
        return [*found, *[None] * (len(keys) - len(found))]

    async def batched_put(self, keys: list[CacheEngineKey], memory_objs: list[MemoryObj]) -> None:
        """Take the chunks to be written some time; they stay in the local tier until then."""
        for key, memory_obj in zip(keys, memory_objs, strict=True):
            memory_obj.ref_count_up()
            self.tier.store(
                key.to_string(),
                _layout(memory_obj),
                memoryview(_bytes_of(memory_obj)),
                memory_obj.ref_count_down,
            )

    async def batched_async_contains(
        self, lookup_id: str, keys: list[CacheEngineKey], pin: bool = False
    ) -> int:
        """As :meth:`batched_contains`, for asynchronous loading."""
        return await asyncio.to_thread(self.batched_contains, keys)

    async def batched_get_non_blocking(
        self, lookup_id: str, keys: list[CacheEngineKey]
    ) -> list[MemoryObj]:
        """The chunks, from the first one on as far as they come."""
        return await self._load(keys)

    async def exists(self, key: CacheEngineKey) -> bool:
        """Whether the chunk can be loaded."""
        return await asyncio.to_thread(self.exists_sync, key)

    def exists_sync(self, key: CacheEngineKey) -> bool:
        """Whether the chunk can be loaded."""
        return self.batched_contains([key]) == 1

    async def get(self, key: CacheEngineKey) -> MemoryObj | None:
        """The chunk."""
        return (await self.batched_get([key]))[0]

    async def put(self, key: CacheEngineKey, memory_obj: MemoryObj) -> None:
        """Take the chunk to be written some time."""
        await self.batched_put([key], [memory_obj])

    def remove_sync(self, key: CacheEngineKey) -> bool:
        """Delete the chunk some time."""
        self.tier.delete(key.to_string())
        return True

    async def close(self) -> None:
        """Write what waits, if that is soon done."""
        await asyncio.to_thread(self.tier.close)

    def support_batched_contains(self) -> bool:
        """Yes."""
        return True

    def support_batched_get(self) -> bool:
        """Yes."""
        return True

    def support_batched_put(self) -> bool:
        """Yes."""
        return True

    async def _load(self, keys: list[CacheEngineKey]) -> list[MemoryObj]:
        names = [key.to_string() for key in keys]
        return await asyncio.to_thread(self.tier.load, names, self._take, _release)

    def _take(self, layout: Layout, payload: memoryview) -> MemoryObj | None:
        """A copy in the local tier's memory; ``None`` when that is full."""
        memory_obj = self._backend.allocate(
            [torch.Size(shape) for _, shape in layout.tensors],
            [getattr(torch, dtype) for dtype, _ in layout.tensors],
            MemoryFormat[layout.format],
            busy_loop=False,
        )
        if memory_obj is not None:
            try:
                numpy.copyto(_bytes_of(memory_obj), numpy.frombuffer(payload, numpy.uint8))
            except BaseException:
                # Left to the garbage collector, it may be freed by a thread that is within the
                # allocator, which then waits for its own lock.
                _release(memory_obj)
                raise
        return memory_obj

    # Last, since it hides the type of its name from what follows.
    async def list(self) -> list[str]:
        """Nothing: a store that replicas share may hold millions of keys."""
        return []


class RemoteTierConnector(TierConnector):
    """The store that replicas share."""

    def _make_tier(self, context: ConnectorContext) -> Tier:
        remote, limits = REMOTE_PLUGIN.decode(context.config.extra_config)
        make_store = self._make_store_of(remote, limits, context)
        size, tokens = self.full_chunk_size_bytes, context.config.chunk_size
        return Tier(remote.url, make_store, limits, tokens, size)

    def _make_store_of(
        self, remote: Remote, limits: TierLimits, context: ConnectorContext
    ) -> Callable[[str], Store]:
        if remote.speaks_redis:
            return functools.partial(_make_redis_store, remote, limits)
        size = value_bytes(self._whole, self.full_chunk_size_bytes)
        connectors = Connectors(remote.url, context.config, context.metadata, size, limits.connect)
        return functools.partial(LMCacheStore, connectors, limits)


class DiskTierConnector(TierConnector):
    """A directory of this machine."""

    async def close(self) -> None:
        """Write what waits, if that is soon done."""
        await super().close()
        self._directory.close()

    def _make_tier(self, context: ConnectorContext) -> Tier:
        disk, limits = DISK_PLUGIN.decode(context.config.extra_config)
        # With MLA all workers have the same KV cache, of which the first writes its own.
        worker = 0 if context.metadata.use_mla else context.metadata.worker_id
        path = Path(disk.directory_of(worker))
        self._directory = DiskDirectory(path, disk.max_bytes)
        size = self.full_chunk_size_bytes
        largest = header_size(self._whole) + size
        return Tier(
            str(path),
            functools.partial(DiskStore, self._directory, largest),
            limits,
            context.config.chunk_size,
            size,
            kind="disk",
            also=self._directory.report,
        )


def _release(memory_obj: MemoryObj) -> None:
    memory_obj.ref_count_down()


def _make_redis_store(remote: Remote, limits: TierLimits, lane: str) -> Store:
    patience: Mapping[str, float] = {"load": limits.load, "write": limits.write}
    return RedisStore(remote, limits, patience.get(lane, limits.connect), lane)


def _layout(memory_obj: MemoryObj) -> Layout:
    tensors = zip(memory_obj.get_dtypes(), memory_obj.get_shapes(), strict=True)
    return _layout_of(memory_obj.get_memory_format(), tensors)


def _layout_of(
    memory_format: MemoryFormat, tensors: Iterable[tuple[torch.dtype, torch.Size]]
) -> Layout:
    return Layout(
        memory_format.name,
        tuple((str(dtype).removeprefix("torch."), tuple(shape)) for dtype, shape in tensors),
    )


def _bytes_of(memory_obj: MemoryObj) -> Any:
    """The memory itself, as an array of bytes."""
    return memory_obj.raw_data.numpy()[: memory_obj.get_size()]
