"""What the server tells the remote tier's plugin by LMCache's ``extra_config``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from kserve_lmcache.remote.address import Remote
from kserve_lmcache.remote.limits import Limits

# Of the plugin, as LMCache's remote_storage_plugins lists it.
PLUGIN = "kserve"
_MODULE = "kserve_lmcache.remote.plugin"
_CLASS = "RemoteTierAdapter"
_KEY = "kserve_lmcache.remote"


def to_extra_config(remote: Remote, limits: Limits) -> dict[str, Any]:
    """Where LMCache finds the plugin, and what it is told; a password may be among it."""
    told = dataclasses.asdict(remote)
    if remote.password_file:  # which may hold another one tomorrow
        told["password"] = None
    return {
        f"remote_storage_plugin.{PLUGIN}.module_path": _MODULE,
        f"remote_storage_plugin.{PLUGIN}.class_name": _CLASS,
        _KEY: {"remote": told, "limits": dataclasses.asdict(limits)},
    }


def from_extra_config(extra_config: Mapping[str, Any]) -> tuple[Remote, Limits]:
    """What :func:`to_extra_config` was given.

    Raises:
        KeyError, TypeError: it wrote nothing there.
    """
    told = extra_config[_KEY]
    return Remote(**told["remote"]), Limits(**told["limits"])


def without_ours(extra_config: Mapping[str, Any]) -> dict[str, Any]:
    """What LMCache's own connectors may see of it."""
    ours = (_KEY, f"remote_storage_plugin.{PLUGIN}.")
    return {name: value for name, value in extra_config.items() if not name.startswith(ours)}
