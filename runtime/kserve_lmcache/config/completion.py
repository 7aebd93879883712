"""Completes a configuration by the values that depend on the machine and the engine."""

from __future__ import annotations

import os

from kserve_lmcache.config import (
    disk_tier,
    kserve_offloading,
    local_tier,
    memory_budget,
    remote_tier,
)
from kserve_lmcache.config.configuration import Configuration
from kserve_lmcache.config.credentials import check_admin_key, remote_of
from kserve_lmcache.config.engine_shape import EngineShape
from kserve_lmcache.config.memory_budget import CacheServer, Needs
from kserve_lmcache.config.resources import memory_limit
from kserve_lmcache.config.stores import Remote


def complete(
    configuration: Configuration, shape: EngineShape | None, needs: Needs
) -> Remote | None:
    """Add the values that depend on the machine and the engine, and the problems of these values.

    Args:
        configuration: changed in place.
        shape: the sizes of the engine's KV cache; ``None`` when there is no model.
        needs: what the server needs besides the local tier.

    Returns:
        The remote store; ``None`` when there is none.
    """
    size_local_tier(configuration, shape, needs)
    if shape:
        local_tier.check(configuration, memory_limit(), shape)
    if needs.cache_server is CacheServer.OWN:
        local_tier.check_shared_memory(configuration, needs.all_workers, os.environ)
    remote_tier.complete(configuration)
    disk_tier.complete(configuration, shape)
    check_admin_key(configuration)
    return remote_of(configuration)


def size_local_tier(configuration: Configuration, shape: EngineShape | None, needs: Needs) -> None:
    """Size the local tier by default, and check that it fits beside everything else."""
    memory, name = memory_limit(), "max_local_cpu_size"
    if name not in configuration.values or configuration.source(name).startswith("default"):
        request = shape.request_bytes if shape else 0
        is_own = needs.cache_server is CacheServer.OWN
        free = local_tier.free_shared_memory(os.environ) if is_own else None
        configuration.values[name] = local_tier.default_size(memory, needs, request, free)
    elif (total := configuration.local_tier_total) is not None:
        configuration.values[name] = kserve_offloading.share_of_worker(total, needs.workers)
    size = configuration.get(name) * memory_budget.GIB
    # A tier that is too large by itself has a problem of its own.
    if shape and size * needs.all_workers <= memory.value:
        problem = memory_budget.problem(memory, needs, size)
        configuration.problems += [problem] if problem else []
