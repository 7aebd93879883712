"""The file from which the engine's processes read LMCache's configuration.

The file is in a directory of its own, where these processes write their snapshots
(:mod:`kserve_lmcache.metrics.snapshots`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import yaml

from kserve_lmcache import logs, redaction
from kserve_lmcache.config import disk_tier, keys, remote_tier, store_url
from kserve_lmcache.config.configuration import Configuration
from kserve_lmcache.config.sources import CONFIG_FILE
from kserve_lmcache.config.stores import Disk, Remote
from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.config.tier_plugins import DISK_PLUGIN, REMOTE_PLUGIN

NAME = "lmcache.yaml"
# LMCache's client for valkey:// is in a package that is not installed. LMCache's client for Redis
# speaks the same protocol.
_SAME_PROTOCOL = {"valkey": "redis", "valkeys": "rediss"}
# LMCache would make a disk tier of its own from these keys as well.
_DISK_KEYS = ("local_disk", "max_local_disk_size", "local_disk_path_sharding")

# LMCache counts the loads that fail, and after ten in 30 seconds it uses no tier for five minutes.
# Our tiers have a circuit breaker of their own, which leaves the other tiers alone.
_NO_SWITCH_OFF = {"get_blocking_failed_threshold": 2**62}

# The file beside LMCache's that holds the passwords.
_SECRETS = "secrets.json"

# The key of kv_connector_extra_config that says whether the server's process receives vLLM's stats.
STATS_ARE_RECEIVED = "kserve_lmcache.stats_are_received"
# The keys of kv_connector_extra_config that have the settings ``copy`` and ``mode``.
COPY = "kserve_lmcache.copy"
MODE = "kserve_lmcache.mode"
# The key of kv_connector_extra_config that says whether workers listen to the server.
STEERED = "kserve_lmcache.is_steered"
# The key of kv_connector_extra_config that has the bytes that one tenant may fill, by tier.
QUOTAS = "kserve_lmcache.quotas"
# The key of kv_connector_extra_config that has the directory of a cache server.
CACHE_SERVER = "kserve_lmcache.cache_server"


def write(
    values: Mapping[str, Any],
    remote: Remote | None,
    path: Path,
    limits: TierLimits | None = None,
    disk: tuple[Disk, TierLimits] | None = None,
) -> None:
    """Write LMCache's configuration. Only the owner may read the file.

    Args:
        values: LMCache's own keys.
        remote: the remote store, if there is one.
        path: the path of the file.
        limits: the limits of our remote tier; ``None`` where LMCache's own connector is used.
        disk: the local disk and the limits of our disk tier, if there is one.
    """
    content = dict(values)
    if disk is not None:  # LMCache asks its tiers in the order of their plugins
        for name in _DISK_KEYS:
            content.pop(name, None)
        _add(content, DISK_PLUGIN.encode(*disk), first=DISK_PLUGIN.name)
    if remote is not None and limits is not None:
        del content["remote_url"]
        secrets_file = _written_secrets(remote, path)
        _add(content, REMOTE_PLUGIN.encode(remote, limits, secrets_file), last=REMOTE_PLUGIN.name)
    elif remote is not None and remote.speaks_redis:
        content["remote_url"] = _redis_url(remote)
    _write(path, yaml.safe_dump(content))


def write_for(configuration: Configuration, remote: Remote | None, path: Path) -> None:
    """Write the file of a configuration that is complete.

    Args:
        configuration: the configuration.
        remote: the remote store, if there is one.
        path: the path of the file.
    """
    disk = disk_tier.disk_of(configuration)
    disk_and_limits = None if disk is None else (disk, disk_tier.limits_of(configuration))
    limits = remote_tier.limits_of(configuration)
    write(configuration.lmcache_values(), remote, path, limits, disk_and_limits)


def replace(directory: Path, configuration: Configuration, remote: Remote | None) -> Path:
    """Write the file into a directory that may have one of an earlier process; returns its path."""
    path = directory / NAME
    for left in (path, path.with_name(_SECRETS)):
        left.unlink(missing_ok=True)
    write_for(configuration, remote, path)
    return path


def _written_secrets(remote: Remote, path: Path) -> Path | None:
    """Write the store's passwords to a file beside ``path``.

    LMCache never learns them, so it cannot log them: it logs its whole configuration.

    Returns:
        The file; None when there is no password.
    """
    secrets = {name: text for name, text in REMOTE_PLUGIN.secrets(remote).items() if text}
    if not secrets:
        return None
    file = path.with_name(_SECRETS)
    _write(file, json.dumps(secrets))
    return file


def _write(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _add(content: dict[str, Any], extra_config: dict[str, Any], **plugins: str) -> None:
    """Add a plugin of ours, before or after all others, and its configuration."""
    first, last = plugins.get("first"), plugins.get("last")
    others = content.get("remote_storage_plugins") or ()
    content["remote_storage_plugins"] = [name for name in (first, *others, last) if name]
    content["extra_config"] = {
        **_NO_SWITCH_OFF,
        **(content.get("extra_config") or {}),
        **extra_config,
    }


def read(path: Path) -> dict[str, Any]:
    """The values that :func:`write` wrote."""
    values: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return values


def secrets_in(path: Path) -> tuple[str, ...]:
    """Every password that :func:`write` wrote, to the file or beside it."""
    beside = path.with_name(_SECRETS)
    passwords = json.loads(beside.read_text("utf-8")).values() if beside.exists() else ()
    return (*redaction.secrets_in(read(path)), *passwords)


def hand_over(path: Path, environ: MutableMapping[str, str]) -> None:
    """Make LMCache read ``path`` and no other configuration.

    Every ``LMCACHE_<KEY>`` variable overrides LMCache's file, so no such variable reaches the
    engine's processes. Credentials reach them by the file only. The level and the format of the log
    are those of every process.
    """
    for variable in keys.variables():
        if variable not in (logs.LEVEL_VARIABLE, logs.FORMAT_VARIABLE):
            environ.pop(variable, None)
    environ[CONFIG_FILE] = str(path)


def _redis_url(remote: Remote) -> str:
    """The URL with credentials and files, in the form that redis-py reads."""
    scheme, _, rest = store_url.parse(remote.url).bare.partition("://")
    scheme = _SAME_PROTOCOL.get(scheme, scheme)
    place, _, query = rest.partition("?")
    if remote.username or remote.password:
        who = f"{quote(remote.username or '', safe='')}:{quote(remote.password or '', safe='')}"
        place = f"{who}@{place}"
    files = {
        "ssl_ca_certs": remote.ca_file,
        "ssl_certfile": remote.cert_file,
        "ssl_keyfile": remote.key_file,
    }
    options = urlencode({name: path for name, path in files.items() if path})
    query = "&".join(part for part in (query, options) if part)
    return f"{scheme}://{place}" + (f"?{query}" if query else "")
