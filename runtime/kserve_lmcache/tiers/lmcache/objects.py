"""What LMCache's connectors to remote stores work with, so that they carry our values.

To them a value is one full chunk of bytes. It is sealed (see :mod:`.envelope`) and filled up to
the size of a whole chunk, since some connectors (``s3://``, ``azure://``) keep one size only.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import logging
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy
import torch
from lmcache.utils import CacheEngineKey
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj
from lmcache.v1.storage_backend.connector import ConnectorContext, ConnectorManager

from kserve_lmcache.config.tier_plugins import PLUGINS, without_tier_plugins
from kserve_lmcache.tiers.guard.codec import Buffer, Layout, header_size
from kserve_lmcache.tiers.guard.store import StoreError
from kserve_lmcache.tiers.lmcache import rdma
from kserve_lmcache.tiers.lmcache.mooncake import SharedConnector

if TYPE_CHECKING:
    import asyncio

    from lmcache.v1.config import LMCacheEngineConfig
    from lmcache.v1.metadata import LMCacheMetadata
    from lmcache.v1.storage_backend.connector.base_connector import RemoteConnector

_PAGE = 4096  # bytes; what O_DIRECT wants, of sizes and of addresses
# Those that connect in their constructor, for as long as the network likes.
_CONNECTING = ("lm", "infinistore", "resp")
# Each lane has a connector of its own: 64 threads (LMCache's default) in each are too many.
_S3_THREADS = 8
_LOGGERS = ("lmcache.v1.protocol", "lmcache.v1.storage_backend.connector")


def value_bytes(layout: Layout, payload_bytes: int) -> int:
    """Bytes of the value of a whole chunk."""
    return -(-(header_size(layout) + payload_bytes) // _PAGE) * _PAGE


def key_of(text: str) -> CacheEngineKey:
    """A short key: ``lm://`` takes 150 characters, and a file's name 255 bytes.

    Two keys of ours that became the same would be told apart by the checksum.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return CacheEngineKey("kserve-lmcache", 1, 0, int.from_bytes(digest, "big"), torch.uint8)


class Value(TensorMemoryObj):  # type: ignore[misc]
    """Bytes in memory of their own, which stays as long as anybody looks at it."""

    @property
    def byte_array(self) -> memoryview:
        """The bytes. LMCache's own view of them is one of memory that may be gone."""
        return memoryview(self.raw_data.numpy())[: self.get_size()]


class Values:
    """Makes values; to a connector it is LMCache's local tier.

    Args:
        config: LMCache's own, as the connectors see it.
        metadata: as the connectors see it.
        size: bytes of the value of a whole chunk.
    """

    memory_allocator = None  # nothing is registered with anyone

    def __init__(self, config: LMCacheEngineConfig, metadata: Any, size: int) -> None:
        self.config = config
        self.metadata = metadata
        self.size = size

    def allocate(
        self,
        shapes: torch.Size | Sequence[torch.Size],
        dtypes: torch.dtype | Sequence[torch.dtype],
        fmt: MemoryFormat = MemoryFormat.KV_2LTD,
        eviction: bool = True,
        busy_loop: bool = True,
    ) -> Value:
        """Memory for a value.

        Raises:
            ValueError: it is larger than any value of ours.
        """
        shapes = [shapes] if isinstance(shapes, torch.Size) else [*shapes]
        dtypes = [dtypes] if isinstance(dtypes, torch.dtype) else [*dtypes]
        size = sum(s.numel() * d.itemsize for s, d in zip(shapes, dtypes, strict=True))
        if size > self.size:
            raise ValueError(f"a value of {size} bytes is none of ours")
        memory = torch.empty(size + _PAGE - 1, dtype=torch.uint8)
        begin = -memory.data_ptr() % _PAGE
        metadata = MemoryObjMetadata(
            shape=shapes[0],
            dtype=dtypes[0],
            address=0,
            phy_size=self.size,  # which s3:// and azure:// ask for when they write
            ref_count=1,
            fmt=fmt,
            shapes=shapes,
            dtypes=dtypes,
        )
        return Value(memory[begin : begin + size], metadata, None)

    def get_full_chunk_size_bytes(self) -> int:
        """Bytes of the value of a whole chunk."""
        return self.size

    def whole(self, *parts: Buffer) -> Value:
        """The parts one after the other, filled up with zeros.

        Raises:
            ValueError: they are larger than a whole chunk.
        """
        value = self.allocate(self.metadata.get_shapes(), self.metadata.get_dtypes())
        array, end = value.raw_data.numpy(), 0
        for part in parts:
            begin, end = end, end + len(part)
            array[begin:end] = numpy.frombuffer(part, numpy.uint8)
        array[end:] = 0
        return value

    def short(self, content: bytes) -> Value:
        """A value that is shorter than a whole chunk; not every connector could read it."""
        value = self.allocate(self.metadata.get_shapes(len(content)), self.metadata.get_dtypes())
        value.raw_data.numpy()[:] = numpy.frombuffer(content, numpy.uint8)
        return value


class _Metadata:
    """LMCache's own, except for what a chunk is."""

    use_mla = False

    def __init__(self, real: LMCacheMetadata, size: int) -> None:
        self._real = real
        self.chunk_size = size  # "tokens" of a byte each

    def get_shapes(self, num_tokens: int | None = None) -> list[torch.Size]:
        # As many as LMCache has: their number is in a variable of the whole process.
        size = self.chunk_size if num_tokens is None else num_tokens
        return [torch.Size([size]), *[torch.Size([0])] * (self._real.get_num_groups() - 1)]

    def get_dtypes(self) -> list[torch.dtype]:
        return [torch.uint8] * self._real.get_num_groups()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class Connectors:
    """Makes LMCache's connectors to one store; used by all lanes.

    Args:
        url: of the store, as LMCache writes it.
        config: LMCache's; what a connector is told by ``extra_config`` is there.
        metadata: LMCache's.
        size: bytes of the value of a whole chunk, from :func:`value_bytes`.
        patience: seconds for a connection.
    """

    def __init__(
        self,
        url: str,
        config: LMCacheEngineConfig,
        metadata: LMCacheMetadata,
        size: int,
        patience: float,
    ) -> None:
        self.scheme = urlsplit(url).scheme
        self.values = Values(_config(config, url), _Metadata(metadata, size), size)
        self._url = url
        self._patience = patience
        self._lock = threading.Lock()
        self._adapters: list[Any] = []
        self._shared = SharedConnector(lambda: self._connect(None), self.values.config)

    @property
    def are_one(self) -> bool:
        """Whether all lanes have the same connector, which none may close."""
        return self.scheme == "mooncakestore"

    def connect(self, loop: asyncio.AbstractEventLoop) -> RemoteConnector:
        """A new connector, whose coroutines run on ``loop``; it may block for long.

        Raises:
            Exception: whatever that connector raises, such as :exc:`ImportError` where its
                package is missing.
        """
        try:
            return self._shared.get() if self.are_one else self._connect(loop)
        finally:
            _quieten()

    def _connect(self, loop: asyncio.AbstractEventLoop | None) -> RemoteConnector:
        with self._lock:
            self._adapters = self._adapters or self._manager(loop).adapters
        if self.scheme == "infinistore":
            importlib.import_module("infinistore")
            if not rdma.devices(Path("/")):  # what it says itself is "ret = -1"
                raise StoreError(f"this machine has no RDMA device (/{rdma.DIRECTORY})")
        if self.scheme in _CONNECTING:
            split = urlsplit(self._url)
            socket.create_connection((split.hostname, split.port), self._patience).close()
        for adapter in self._adapters:
            if adapter.can_parse(self._url):
                return adapter.create_connector(self._context(loop))
        raise ValueError(f"LMCache has no connector for {self.scheme}://")

    def _manager(self, loop: asyncio.AbstractEventLoop | None) -> ConnectorManager:
        values = self.values
        return ConnectorManager(self._url, loop, values, values.config, values.metadata)

    def _context(self, loop: asyncio.AbstractEventLoop | None) -> ConnectorContext:
        values = self.values
        return ConnectorContext(self._url, loop, values, values.config, values.metadata)


def _quieten() -> None:
    """What LMCache says whenever it connects is said once; a store may be away for long."""
    if logging.getLogger(_LOGGERS[0]).level < logging.INFO:  # somebody looks for a mistake
        return
    for name, logger in [*logging.root.manager.loggerDict.items()]:
        if isinstance(logger, logging.Logger) and name.startswith(_LOGGERS):
            logger.setLevel(max(logger.level, logging.WARNING))


def _config(config: LMCacheEngineConfig, url: str) -> LMCacheEngineConfig:
    """LMCache's, without what is meant for us and with what would do harm corrected."""
    changed, scheme = copy.copy(config), urlsplit(url).scheme
    ours = [plugin.name for plugin in PLUGINS]
    others = [name for name in config.remote_storage_plugins or () if name not in ours]
    changed.remote_storage_plugins = others or None
    changed.save_unfull_chunk = False  # to them every chunk is whole
    changed.extra_config = extra = without_tier_plugins(config.extra_config or {})
    if scheme == "mooncakestore":
        # Without, it hands out bare addresses, and forgets a transfer that takes a second.
        extra["save_chunk_meta"] = True
        # LMCache ignores the URL, and names the master as older Mooncakes did.
        named = [f"{prefix}master_server_address" for prefix in ("mooncake_", "")]
        master = next((extra[name] for name in named if name in extra), urlsplit(url).netloc)
        extra.setdefault("mooncake_master_server_addr", master)
    elif scheme == "s3":
        extra.setdefault("s3_num_io_threads", _S3_THREADS)
    return changed
