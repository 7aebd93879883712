"""The disk tier's directories: whether they can be written, and have the room they may take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from kserve_lmcache.config.resources import nearest_existing, why_unwritable
from kserve_lmcache.doctor.check import (
    Check,
    Finding,
    Subject,
    failure,
    ok,
    size,
    skipped,
    warning,
)

NAME = "local disk"


def local_disk(subject: Subject) -> Iterator[Finding]:
    """A directory that cannot be written keeps nothing; one in memory is none."""
    disk = subject.disk
    if disk is None:
        yield skipped(NAME, "no disk tier is asked for")
        return
    for directory in disk.directories:
        yield _directory(Path(directory), disk.max_bytes)


def _directory(directory: Path, max_bytes: int) -> Finding:
    there = nearest_existing(directory)
    if not there.is_dir():
        return failure(NAME, f"{there} is no directory", "Name another one in local_disk.")
    if reason := why_unwritable(there):
        return failure(
            NAME,
            f"{there} cannot be written: {reason}",
            "Mount a volume there that this user may write (fsGroup, no readOnly), with room.",
        )
    held = _occupied(directory)
    state = os.statvfs(there)
    free = state.f_bavail * state.f_frsize
    evidence = f"{directory} holds {size(held)} of {size(max_bytes)}; {size(free)} are free there"
    if held + free < max_bytes:
        return warning(
            NAME,
            f"{evidence}: full, it keeps less than it may",
            "Lower max_local_disk_size, or mount a larger volume.",
        )
    return ok(NAME, evidence)


def _occupied(directory: Path) -> int:
    """Bytes of what an earlier server left there."""
    try:
        return sum(entry.stat(follow_symlinks=False).st_size for entry in os.scandir(directory))
    except OSError:
        return 0


CHECK = Check(NAME, local_disk)
