"""The private parts of LMCache's connectors to remote stores."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

from lmcache.v1.storage_backend.connector.base_connector import RemoteConnector

if TYPE_CHECKING:
    from lmcache.utils import CacheEngineKey
    from lmcache.v1.config import LMCacheEngineConfig

# The coroutines by which s3:// and azure:// ask for a value's size. Their exists() blocks, and
# remembers answers.
_SIZE_REQUESTS = ("_get_object_size_async", "_get_blob_size_async")


async def value_size(connector: RemoteConnector, key: CacheEngineKey) -> int:
    """Returns a value's size in bytes, or 1 where the connector knows no sizes.

    The size of a missing value is 0. Mooncake returns a negative error code when it fails.
    """
    for name in _SIZE_REQUESTS:
        if request := getattr(connector, name, None):
            return int(await request(key.to_string()))
    return int(await connector.exists(key))


def forget_sizes(connector: RemoteConnector) -> None:
    """Clears the connector's cache of sizes, which misses what others write and delete."""
    if cache := getattr(connector, "object_size_cache", None):
        cache.clear()


def client_socket(connector: RemoteConnector | None) -> socket.socket | None:
    """Returns the socket of an ``lm://`` connector; ``None`` for all others."""
    client = getattr(connector, "client_socket", None)
    return client if isinstance(client, socket.socket) else None


def remove(connector: RemoteConnector, scheme: str, key: CacheEngineKey) -> None:
    """Deletes a value, where the connector or the client below it can. Blocks."""
    if type(connector).remove_sync is not RemoteConnector.remove_sync:
        with contextlib.suppress(NotImplementedError):
            connector.remove_sync(key)
    elif scheme == "infinistore":
        connector.rdma_conn.delete_keys([key.to_string()])
    elif scheme == "mooncakestore":
        try:
            connector.store.remove(key.to_string(), True)  # even if somebody has just read it
        except TypeError:  # an older Mooncake
            connector.store.remove(key.to_string())


def unblock_close(connector: RemoteConnector) -> None:
    """Keeps ``close()`` from waiting, on the event loop, for a coroutine of the same loop."""
    executor = getattr(connector, "pq_executor", None)
    if executor is not None:
        executor.shutdown = lambda wait=True: executor.shutdown_async(wait=False)


def mooncake_setup(config: LMCacheEngineConfig) -> tuple[dict[str, str], list[str | int]]:
    """Returns the arguments of Mooncake's ``setup``: by name, and in order for older versions."""
    from lmcache.v1.storage_backend.connector import mooncakestore_connector

    source = mooncakestore_connector.MooncakeStoreConfig
    path = os.getenv("MOONCAKE_CONFIG_PATH")
    options = source.from_file(path) if path else source.load_from_lmcache_config(config)
    by_name = {**options.setup_config, "global_segment_size": "0"}  # lends no memory
    in_order = [
        int(by_name.get(name) or 0)
        if name in mooncakestore_connector._LEGACY_INT_KEYS
        else by_name.get(name, "")
        for name in mooncakestore_connector._LEGACY_SETUP_KEYS
    ]
    return by_name, in_order
