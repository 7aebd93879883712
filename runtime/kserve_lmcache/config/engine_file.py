"""The file from which the engine's processes read LMCache's configuration.

The file is in a directory of its own, where these processes write their snapshots
(:mod:`kserve_lmcache.metrics.snapshots`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import yaml

from kserve_lmcache.config import keys
from kserve_lmcache.config.sources import CONFIG_FILE
from kserve_lmcache.config.stores import Disk, Remote
from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.config.tier_plugins import DISK_PLUGIN, REMOTE_PLUGIN

# LMCache has a client of its own for valkey://, in a package that is not installed; what it has
# for Redis speaks the same protocol.
_SAME_PROTOCOL = {"valkey": "redis", "valkeys": "rediss"}
# With them LMCache would make a tier of its own as well.
_DISK_KEYS = ("local_disk", "max_local_disk_size", "local_disk_path_sharding")

# The key of kv_connector_extra_config that says whether the server's process receives vLLM's stats.
STATS_ARE_RECEIVED = "kserve_lmcache.stats_are_received"


def write(
    values: Mapping[str, Any],
    remote: Remote | None,
    path: Path,
    limits: TierLimits | None = None,
    disk: tuple[Disk, TierLimits] | None = None,
) -> None:
    """Write what LMCache has to be told; only its user may read the file.

    Args:
        values: LMCache's own keys.
        remote: the remote store, if there is one.
        path: of the file.
        limits: of our connector to it; ``None`` where LMCache's own is asked for.
        disk: the local disk and the limits of our tier on it, if there is one.
    """
    told = dict(values)
    if disk is not None:  # LMCache asks its tiers in the order of their plugins
        for name in _DISK_KEYS:
            told.pop(name, None)
        _add(told, DISK_PLUGIN.encode(*disk), first=DISK_PLUGIN.name)
    if remote is not None and limits is not None:
        del told["remote_url"]
        _add(told, REMOTE_PLUGIN.encode(remote, limits), last=REMOTE_PLUGIN.name)
    elif remote is not None and remote.speaks_redis:
        told["remote_url"] = _redis_url(remote)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        yaml.safe_dump(told, file)


def _add(told: dict[str, Any], extra_config: dict[str, Any], **plugins: str) -> None:
    """Name a plugin of ours, before or behind all others, and what it is told."""
    first, last = plugins.get("first"), plugins.get("last")
    others = told.get("remote_storage_plugins") or ()
    told["remote_storage_plugins"] = [name for name in (first, *others, last) if name]
    told["extra_config"] = {**(told.get("extra_config") or {}), **extra_config}


def read(path: Path) -> dict[str, Any]:
    """What :func:`write` wrote."""
    values: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return values


def hand_over(path: Path, environ: MutableMapping[str, str]) -> None:
    """Let LMCache read ``path`` and nothing else.

    LMCache puts every ``LMCACHE_<KEY>`` variable over its file: none may reach its processes,
    nor any credentials beside those in the file.
    """
    for variable in keys.variables():
        environ.pop(variable, None)
    environ[CONFIG_FILE] = str(path)


def _redis_url(remote: Remote) -> str:
    """The URL as LMCache's connector, which hands it to redis-py, takes credentials and files."""
    split = urlsplit(remote.url)
    scheme = _SAME_PROTOCOL.get(split.scheme, split.scheme)
    netloc = split.netloc
    if remote.username or remote.password:
        who = f"{quote(remote.username or '', safe='')}:{quote(remote.password or '', safe='')}"
        netloc = f"{who}@{netloc}"
    files = {
        "ssl_ca_certs": remote.ca_file,
        "ssl_certfile": remote.cert_file,
        "ssl_keyfile": remote.key_file,
    }
    options = urlencode({name: path for name, path in files.items() if path})
    query = "&".join(part for part in (split.query, options) if part)
    return f"{scheme}://{netloc}{split.path}" + (f"?{query}" if query else "")
