"""Every key that can be set: those of LMCache's table, and the settings of this runtime.

LMCache's table is read at run time, so the keys are those of the installed LMCache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kserve_lmcache.compat.lmcache import configuration as lmcache
from kserve_lmcache.config.settings import SETTINGS

PREFIX = "LMCACHE_"

# The keys that operators set, and their meaning: LMCache's table describes few of them.
HELP = {
    "chunk_size": "Tokens of one chunk. A hit is a whole number of chunks.",
    "local_cpu": "Keep chunks in the container's memory (the local tier).",
    "max_local_cpu_size": "Size of the local tier of each worker, in GB of 2**30 bytes.",
    "local_disk": "Directory of the disk tier. Several directories, separated by commas, stand for "
    "several disks.",
    "max_local_disk_size": "Size of one directory of the disk tier, in GB of 2**30 bytes. All "
    "processes that use the directory share the size.",
    "remote_url": "Remote store that replicas share, for example redis://HOST:PORT.",
    "remote_serde": "Format of chunks in the remote store. Only naive keeps them exact.",
    "save_decode_cache": "Store the KV of generated tokens too, not of prompts alone.",
    "save_unfull_chunk": "Store the last chunk of a prompt even when the chunk is not full.",
    "pre_caching_hash_algorithm": "Hash of a chunk's tokens. Must be the same in all replicas.",
    "cache_policy": "Order in which chunks leave a full local tier.",
    "blocking_timeout_secs": "Seconds that LMCache waits for a read of a chunk.",
    "extra_config": "Options of backends and plugins, as a mapping.",
    "priority_limit": "Largest priority number of a request whose KV is stored.",
}


@dataclass(frozen=True)
class Key:
    """A key that can be set.

    Attributes:
        name: the name in the YAML file.
        type: the Python type of the value, perhaps ``Optional`` or ``list[...]``.
        default: the default of LMCache or of the setting.
        variable: the environment variable.
        help: the meaning. Empty where LMCache has no description.
        is_setting: whether the key is a setting of this runtime, not a key of LMCache.
        secret: whether the value is never shown, and comes from the variable alone.
        convert: LMCache's conversion of the parsed value. The last step of parsing, so that the
            value shown is the value used.
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
    """Every key, by its name."""
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
    """The current name of each key that LMCache has renamed, by its former name."""
    known = table()
    return {old: new for old, new in lmcache.aliases().items() if old not in known and new in known}


@functools.cache
def variables() -> Mapping[str, Key]:
    """The key of each environment variable. Variables of former names are included."""
    known = {key.variable: key for key in table().values()}
    known.update({PREFIX + old.upper(): table()[new] for old, new in aliases().items()})
    return known
