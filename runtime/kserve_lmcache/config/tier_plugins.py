"""What the server tells the plugins of our tiers by LMCache's ``extra_config``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from kserve_lmcache.config.stores import Disk, Remote
from kserve_lmcache.config.tier_limits import Limits

# The plugins, as LMCache's remote_storage_plugins lists them.
PLUGIN = "kserve"
DISK_PLUGIN = "kserve-disk"
# The tiers behind them, by plugin.
TIERS = {DISK_PLUGIN: "disk", PLUGIN: "remote"}
_MODULE = "kserve_lmcache.tiers.plugin"
_CLASSES = {PLUGIN: "RemoteTierAdapter", DISK_PLUGIN: "DiskTierAdapter"}
_KEYS = {PLUGIN: "kserve_lmcache.tiers", DISK_PLUGIN: "kserve_lmcache.disk"}


def to_extra_config(remote: Remote, limits: Limits) -> dict[str, Any]:
    """Where LMCache finds the remote tier, and what that is told; a password may be among it."""
    told = dataclasses.asdict(remote)
    if remote.password_file:  # which may hold another one tomorrow
        told["password"] = None
    return _told(PLUGIN, {"remote": told, "limits": dataclasses.asdict(limits)})


def from_extra_config(extra_config: Mapping[str, Any]) -> tuple[Remote, Limits]:
    """What :func:`to_extra_config` was given.

    Raises:
        KeyError, TypeError: it wrote nothing there.
    """
    told = extra_config[_KEYS[PLUGIN]]
    return Remote(**told["remote"]), Limits(**told["limits"])


def disk_to_extra_config(disk: Disk, limits: Limits) -> dict[str, Any]:
    """Where LMCache finds the disk tier, and what that is told."""
    told = {**dataclasses.asdict(disk), "directories": list(disk.directories)}
    return _told(DISK_PLUGIN, {"disk": told, "limits": dataclasses.asdict(limits)})


def disk_from_extra_config(extra_config: Mapping[str, Any]) -> tuple[Disk, Limits]:
    """What :func:`disk_to_extra_config` was given.

    Raises:
        KeyError, TypeError: it wrote nothing there.
    """
    told = extra_config[_KEYS[DISK_PLUGIN]]
    disk = {**told["disk"], "directories": tuple(told["disk"]["directories"])}
    return Disk(**disk), Limits(**told["limits"])


def without_ours(extra_config: Mapping[str, Any]) -> dict[str, Any]:
    """What LMCache's own connectors may see of it."""
    ours = (*_KEYS.values(), *(f"remote_storage_plugin.{plugin}." for plugin in TIERS))
    return {name: value for name, value in extra_config.items() if not name.startswith(ours)}


def _told(plugin: str, told: dict[str, Any]) -> dict[str, Any]:
    return {
        f"remote_storage_plugin.{plugin}.module_path": _MODULE,
        f"remote_storage_plugin.{plugin}.class_name": _CLASSES[plugin],
        _KEYS[plugin]: told,
    }
