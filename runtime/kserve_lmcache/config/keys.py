"""What can be set: LMCache's own table, read at run time and never copied, and our settings."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kserve_lmcache.compat.lmcache import configuration as lmcache
from kserve_lmcache.config.settings import SETTINGS

PREFIX = "LMCACHE_"

# What an operator would set, where LMCache's table has no words for it.
HELP = {
    "chunk_size": "Tokens of one cached chunk; a hit is a whole number of them.",
    "local_cpu": "Keep chunks in the container's memory.",
    "max_local_cpu_size": "Size of that memory, in GB of 2**30 bytes, of each engine worker.",
    "local_disk": "Directory for a tier on a local disk; several between commas, one a disk.",
    "max_local_disk_size": "Size of that directory, in GB of 2**30 bytes, whoever writes there.",
    "remote_url": "Store that replicas share: redis://HOST:PORT and others.",
    "remote_serde": "How chunks are written to the remote store; only naive keeps them exact.",
    "save_decode_cache": "Store what was generated too, not the prompt alone.",
    "save_unfull_chunk": "Store the last chunk of a prompt although it is not full.",
    "pre_caching_hash_algorithm": "Hash of a chunk's tokens; must be alike in all replicas.",
    "cache_policy": "Which chunks leave a full local CPU tier first.",
    "blocking_timeout_secs": "Seconds to wait for a remote read.",
    "extra_config": "Options of single backends and plugins, a mapping.",
    "priority_limit": "Do not store requests of a lower priority than this.",
}


@dataclass(frozen=True)
class Key:
    """One thing that can be set.

    Attributes:
        name: as in the YAML file.
        type: its Python type, perhaps ``Optional`` or ``list[...]``.
        default: LMCache's or ours.
        variable: its environment variable.
        help: what it does; empty where LMCache does not say.
        is_setting: one of ours, not LMCache's.
        secret: its value is never shown, and only a variable may hold it.
        convert: LMCache's own conversion, run last, so that what is shown is what it uses.
    """

    name: str
    type: Any
    default: Any
    variable: str
    help: str = ""
    is_setting: bool = False
    secret: bool = False
    convert: Callable[[Any], Any] | None = None


@functools.cache
def table() -> Mapping[str, Key]:
    """Every key by its name."""
    keys = {
        name: Key(
            name=name,
            type=definition.type,
            default=definition.default,
            variable=PREFIX + name.upper(),
            help=HELP.get(name) or definition.description,
            convert=definition.convert,
        )
        for name, definition in lmcache.definitions().items()
    }
    for setting in SETTINGS:
        keys[setting.name] = Key(
            name=setting.name,
            type=setting.type if setting.default is not None else setting.type | None,
            default=setting.default,
            variable=setting.environment_variable,
            help=setting.help,
            is_setting=True,
            secret=setting.secret,
        )
    return keys


@functools.cache
def aliases() -> Mapping[str, str]:
    """Older names of LMCache's keys, each with its name of today."""
    known = table()
    return {old: new for old, new in lmcache.aliases().items() if old not in known and new in known}


@functools.cache
def variables() -> Mapping[str, Key]:
    """The key that each environment variable sets, older names included."""
    known = {key.variable: key for key in table().values()}
    known.update({PREFIX + old.upper(): table()[new] for old, new in aliases().items()})
    return known
