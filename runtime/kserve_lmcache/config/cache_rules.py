"""The rules of the routes that steer the cache, and of the quotas of tenants."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kserve_lmcache.config.settings import parse_route_groups
from kserve_lmcache.config.stores import REDIS_SCHEMES
from kserve_lmcache.errors import Problem

if TYPE_CHECKING:
    from kserve_lmcache.config.rule import Context


def check(context: Context) -> Iterator[Problem]:
    """The problems of their settings."""
    quota, key_file = "tenant_remote_quota_size", "cache_admin_key_file"
    lists = context.scheme() in REDIS_SCHEMES and context["remote_connector"] != "lmcache"
    has_routes = "cache" in parse_route_groups(context["enable_routes"])
    if context["remote_url"] and not lists:
        message = "needs Redis or Valkey, and remote_connector=kserve: other stores list no chunks"
        if context[quota]:
            yield context.problem(quota, message, f"Remove {quota}.")
        if has_routes:
            yield context.problem("enable_routes", f"has cache, which {message}", "Remove cache.")
    if context[key_file] and not has_routes:
        message = "has no effect without the routes of the group cache"
        yield context.problem(key_file, message, f"Set enable_routes=cache, or remove {key_file}.")
    if has_routes and context["use_layerwise"]:
        yield context.problem(
            "enable_routes",
            "has cache, which does not find the chunks of use_layerwise",
            "Remove cache, or use_layerwise.",
        )
