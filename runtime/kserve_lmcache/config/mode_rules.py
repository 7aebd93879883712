"""The rules of ``mode``: a key that means nothing in a mode is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kserve_lmcache.config import keys
from kserve_lmcache.config.settings import MULTIPROCESS, parse_route_groups
from kserve_lmcache.config.stores import REDIS_SCHEMES
from kserve_lmcache.errors import Problem

if TYPE_CHECKING:
    from kserve_lmcache.config.rule import Context

# LMCache's keys that a cache server reads.
_READ = {
    "chunk_size",
    "max_local_cpu_size",
    "local_disk",
    "max_local_disk_size",
    "remote_url",
    "save_decode_cache",
    "min_retrieve_tokens",
}
# LMCache's keys that have one value there.
_ONE_VALUE = {
    "local_cpu": True,
    "cache_policy": "LRU",
    "remote_serde": "naive",
    "copy": "blocks",
    "remote_connector": "kserve",
}
_FIX = "Remove {name}, or use mode=in-process."


def check(context: Context) -> Iterator[Problem]:
    """The problems of keys that the mode does not know."""
    if context["mode"] != MULTIPROCESS:
        if context["cache_server_directory"]:
            fix = "Set mode=multiprocess, or remove cache_server_directory."
            message = "has no effect with mode=in-process"
            yield context.problem("cache_server_directory", message, fix)
        return
    for name in context.configuration.values:
        if name in _ONE_VALUE:
            if context[name] not in (_ONE_VALUE[name], None):
                message = f"is {context[name]!r}, but mode=multiprocess knows {_ONE_VALUE[name]!r}"
                yield context.problem(name, f"{message} alone", _FIX.format(name=name))
        elif name not in _READ and not keys.table()[name].is_setting and _is_set(context, name):
            message = "has no effect with mode=multiprocess"
            yield context.problem(name, message, _FIX.format(name=name))
    for name in ("tenant_local_quota_size", "tenant_remote_quota_size"):
        if context[name]:
            message = "has no effect with mode=multiprocess"
            yield context.problem(name, message, _FIX.format(name=name))
    if "cache" in parse_route_groups(context["enable_routes"]):
        message = "has cache, which mode=multiprocess does not have yet"
        yield context.problem("enable_routes", message, "Remove cache, or use mode=in-process.")
    if context["remote_url"] and context.scheme() not in ("", *REDIS_SCHEMES):
        message = "names a store that mode=multiprocess does not know: it knows Redis and Valkey"
        yield context.problem("remote_url", message, _FIX.format(name="remote_url"))


def _is_set(context: Context, name: str) -> bool:
    """Whether a source of the user's sets the key to something else than LMCache's default."""
    is_default = context.configuration.source(name).startswith("default")
    return not is_default and context[name] != keys.table()[name].default
