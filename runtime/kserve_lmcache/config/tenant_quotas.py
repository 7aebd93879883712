"""The settings that bound what one tenant may fill of a tier."""

from __future__ import annotations

from kserve_lmcache.config.configuration import Configuration

_GIB = 2**30


def of_worker(configuration: Configuration, workers: int) -> dict[str, int]:
    """The bytes that one tenant may fill, by tier, of one worker.

    Args:
        configuration: the configuration.
        workers: the number of the engine's workers, which share the quota of the remote store.
    """
    local = configuration.get("tenant_local_quota_size")
    remote = configuration.get("tenant_remote_quota_size")
    quotas = {"local_cpu": local, "remote": None if remote is None else remote / workers}
    return {tier: int(size * _GIB) for tier, size in quotas.items() if size is not None}
