"""The disk tier: where it is, how much it may hold and how long it may take."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

from kserve_lmcache.config.configuration import Configuration
from kserve_lmcache.config.engine_shape import EngineShape
from kserve_lmcache.config.remote_tier import GIB, queue_gib
from kserve_lmcache.config.resources import nearest_existing, write_error
from kserve_lmcache.config.stores import Disk
from kserve_lmcache.config.tier_limits import Limits
from kserve_lmcache.errors import Problem

# Seconds for all chunks of a prompt, and less where computing them takes less. A long prompt's are
# some gigabytes, for which a common disk takes seconds.
_LOAD = 5.0
# Nobody waits for a write, and a busy disk holds it up for seconds now and then.
_WRITE = 10.0
# The oldest make room: a full disk takes chunks like any other.
_FULL = (errno.ENOSPC, errno.EDQUOT)


def disk_of(configuration: Configuration) -> Disk | None:
    """The disks that are asked for; ``None`` where there are none."""
    directories, size = (configuration.get(name) for name in ("local_disk", "max_local_disk_size"))
    if not directories or not size > 0:  # one without the other is refused
        return None
    return Disk(tuple(directories.split(",")), int(size * GIB))


def limits_of(configuration: Configuration) -> Limits:
    """The limits of the tier; all but the queue's are the same for every disk.

    A lookup's answer is in memory, but for what another process has written.
    """
    return Limits(
        load=_LOAD,
        write=_WRITE,
        queue_bytes=int(queue_gib(configuration) * GIB),
        ttl=0,  # its size bounds it
    )


def complete(configuration: Configuration, shape: EngineShape | None) -> None:
    """Add what is wrong with the disk tier on this machine to the configuration's problems."""
    disk = disk_of(configuration)
    if disk is not None:
        configuration.problems += _problems(configuration, disk, shape)


def _problems(
    configuration: Configuration, disk: Disk, shape: EngineShape | None
) -> Iterator[Problem]:
    for directory in disk.directories:
        error = write_error(nearest_existing(Path(directory)))
        if error is not None and error.errno not in _FULL:
            yield Problem(
                f"local_disk {directory} cannot be written: {error.strerror}",
                configuration.source("local_disk"),
                "Mount a volume there that this user may write (fsGroup, no readOnly), or leave "
                "it out.",
            )
    chunk = shape.kv_bytes_per_token * configuration.get("chunk_size") if shape else 0
    if chunk > disk.most_bytes:
        yield Problem(
            f"max_local_disk_size of {disk.most_bytes / GIB:g} GiB holds not one chunk "
            f"({chunk / GIB:g} GiB)",
            configuration.source("max_local_disk_size"),
            "Ask for more, or leave out local_disk.",
        )
