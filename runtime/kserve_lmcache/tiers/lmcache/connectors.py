"""Makes LMCache's connectors to one store."""

from __future__ import annotations

import copy
import importlib
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmcache.v1.storage_backend.connector import ConnectorContext, ConnectorManager

from kserve_lmcache.config import store_url
from kserve_lmcache.config.tier_plugins import PLUGINS, without_tier_plugins
from kserve_lmcache.tiers.guard.store import StoreError
from kserve_lmcache.tiers.lmcache import rdma
from kserve_lmcache.tiers.lmcache.mooncake import MASTER, SharedConnector
from kserve_lmcache.tiers.lmcache.values import Values

if TYPE_CHECKING:
    import asyncio

    from lmcache.v1.config import LMCacheEngineConfig
    from lmcache.v1.metadata import LMCacheMetadata
    from lmcache.v1.storage_backend.connector.base_connector import RemoteConnector

# Their constructors connect, without a timeout.
_CONNECTING = ("lm", "infinistore", "resp")
# For each connector. Each kind of call has one, and LMCache's default is 64 threads.
_S3_THREADS = 8


class Connectors:
    """Makes connectors for all kinds of calls.

    Args:
        url: of the store, as LMCache writes it.
        config: LMCache's. Its ``extra_config`` holds the connectors' options.
        metadata: LMCache's.
        size: bytes of a full chunk's value, from :func:`.values.value_size`.
        timeout: of a connection, in seconds.
    """

    def __init__(
        self,
        url: str,
        config: LMCacheEngineConfig,
        metadata: LMCacheMetadata,
        size: int,
        timeout: float,
    ) -> None:
        self.scheme = store_url.scheme_of(url)
        self.values = Values(connector_config(config, url), metadata, size)
        self._url = url
        self._timeout = timeout
        self._lock = threading.Lock()
        self._adapters: list[Any] = []
        self._shared = SharedConnector(lambda: self._connect(None), self.values.config)

    @property
    def is_shared(self) -> bool:
        """Whether all calls use one connector, which none of them may close."""
        return self.scheme == "mooncakestore"

    def connect(self, loop: asyncio.AbstractEventLoop) -> RemoteConnector:
        """Makes a connector whose coroutines run on ``loop``. May block for long.

        Raises:
            Exception: whatever the connector raises, such as :exc:`ImportError` where its
                package is missing.
        """
        return self._shared.get() if self.is_shared else self._connect(loop)

    def _connect(self, loop: asyncio.AbstractEventLoop | None) -> RemoteConnector:
        values = self.values
        context = (self._url, loop, values, values.config, values.metadata)
        with self._lock:
            self._adapters = self._adapters or ConnectorManager(*context).adapters
        if self.scheme == "infinistore":
            importlib.import_module("infinistore")
            if not rdma.devices(Path("/")):  # the connector's own message is "ret = -1"
                raise StoreError(f"this machine has no RDMA device (/{rdma.DIRECTORY})")
        if self.scheme in _CONNECTING:
            (address,) = store_url.parse(self._url).addresses
            socket.create_connection(address, self._timeout).close()
        for adapter in self._adapters:
            if adapter.can_parse(self._url):
                return adapter.create_connector(ConnectorContext(*context))
        raise ValueError(f"LMCache has no connector for {self.scheme}://")


def connector_config(config: LMCacheEngineConfig, url: str) -> LMCacheEngineConfig:
    """Returns LMCache's configuration for its connectors.

    The copy lacks the settings of our plugins, and corrects options that would do harm.
    """
    changed, scheme = copy.copy(config), store_url.scheme_of(url)
    ours = [plugin.name for plugin in PLUGINS]
    others = [name for name in config.remote_storage_plugins or () if name not in ours]
    changed.remote_storage_plugins = others or None
    changed.save_unfull_chunk = False  # all values are full chunks
    changed.extra_config = extra = without_tier_plugins(config.extra_config or {})
    if scheme == "mooncakestore":
        # Without it, the connector hands out addresses without an owner, and forgets a transfer
        # that takes a second.
        extra["save_chunk_meta"] = True
        # LMCache ignores the URL, and uses the name that older versions of Mooncake had.
        named = [f"{prefix}master_server_address" for prefix in ("mooncake_", "")]
        master = next((extra[name] for name in named if name in extra), _server(url))
        extra.setdefault(MASTER, master)
    elif scheme == "s3":
        extra.setdefault("s3_num_io_threads", _S3_THREADS)
    return changed


def _server(url: str) -> str:
    """Returns ``HOST:PORT`` of a store with one server."""
    ((host, port),) = store_url.parse(url).addresses
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
