"""The cache server of this machine, where there is one for all servers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kserve_lmcache.cache_server import choice
from kserve_lmcache.cache_server.rpc import CacheServerError
from kserve_lmcache.config import engine_file
from kserve_lmcache.config.configuration import Configuration, Value
from kserve_lmcache.config.engine_shape import EngineShape
from kserve_lmcache.config.memory_budget import GIB

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_START_SECONDS = 5.0  # that such a server has to start


def shared_cache_server(
    engine_config: VllmConfig, configuration: Configuration, shape: EngineShape
) -> Path | None:
    """The directory of a cache server that others use as well, written to the connector's keys.

    Where the server of the directory cannot be used, this server starts its own and says why.
    """
    directory = configuration.get("cache_server_directory")
    if not directory or configuration.problems:
        return None
    try:
        welcome = choice.usable(Path(directory), _START_SECONDS)
    except CacheServerError as error:
        configuration.notes.append(f"This server starts a cache server of its own: {error}")
        del configuration.values["cache_server_directory"]
        return None
    size = welcome.size / GIB / shape.workers
    configuration.values["max_local_cpu_size"] = Value(size, f"the cache server in {directory}")
    extra = engine_config.kv_transfer_config.kv_connector_extra_config
    extra[engine_file.CACHE_SERVER] = str(directory)
    return Path(directory)
