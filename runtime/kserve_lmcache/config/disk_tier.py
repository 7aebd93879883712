"""The disk tier's settings: the directories, their check on this machine, and the limits."""

from __future__ import annotations

from pathlib import Path

from kserve_lmcache.config.configuration import Configuration
from kserve_lmcache.config.directories import Directory, Fault, fault_of
from kserve_lmcache.config.engine_shape import EngineShape
from kserve_lmcache.config.remote_tier import GIB, default_queue_gib
from kserve_lmcache.config.stores import Disk
from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.errors import Problem

# Seconds. A long prompt's chunks are some gigabytes, which a common disk reads in seconds.
_LOAD = 5.0
# Seconds. A busy disk sometimes delays a write for seconds, and no request waits for a write.
_WRITE = 10.0


def disk_of(configuration: Configuration) -> Disk | None:
    """Returns the directories; ``None`` where there is no disk tier."""
    directories, size = (configuration.get(name) for name in ("local_disk", "max_local_disk_size"))
    if not directories or not size > 0:  # a rule refuses one without the other
        return None
    return Disk(tuple(directories.split(",")), int(size * GIB))


def directory(path: str) -> Directory:
    """Returns the description of a directory of the tier."""
    return Directory("the disk tier", Path(path))


def complete(configuration: Configuration, shape: EngineShape | None) -> None:
    """Checks that the directories can be written and that a chunk fits into one of them."""
    disk = disk_of(configuration)
    if disk is None:
        return
    for path in disk.directories:
        found = fault_of(directory(path))
        # A full disk is no problem: new chunks replace the oldest ones.
        if found is not None and found.fault is not Fault.FULL:
            reason = f": {found.reason}" if found.reason else ""
            problem = Problem(
                f"local_disk {path} {found.fault}{reason}",
                configuration.source("local_disk"),
                "Mount a volume there that this user may write (fsGroup, no readOnly), or leave "
                "local_disk out.",
            )
            configuration.problems.append(problem)
    chunk = shape.kv_bytes_per_token * configuration.get("chunk_size") if shape else 0
    if chunk > disk.max_bytes:
        problem = Problem(
            f"max_local_disk_size of {disk.max_bytes / GIB:g} GiB is less than one chunk "
            f"({chunk / GIB:g} GiB)",
            configuration.source("max_local_disk_size"),
            "Raise max_local_disk_size, or leave local_disk out.",
        )
        configuration.problems.append(problem)


def limits_of(configuration: Configuration) -> TierLimits:
    """Returns the limits; all but the queue's are the same for every disk."""
    return TierLimits(
        load=_LOAD,
        write=_WRITE,
        queue_bytes=int(default_queue_gib(configuration) * GIB),
        ttl=0,  # the tier's size bounds it
    )
