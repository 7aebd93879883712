"""Runs a command under a real memory limit: of a control group where one can be made."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
_numbers = itertools.count()


def own_memory_cgroup() -> Path | None:
    """The directory of this process's memory cgroup, version 1 or 2."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return CGROUPS / "memory" / path.lstrip("/")
        if not controllers and (CGROUPS / path.lstrip("/") / "memory.max").exists():
            return CGROUPS / path.lstrip("/")
    return None


@contextmanager
def limited(memory: int) -> Iterator[Sequence[str]]:
    """What stands before a command to run it under a limit of ``memory`` bytes."""
    group = _make_group(memory)
    scope = ["systemd-run", "--quiet", "--user", "--scope", f"--property=MemoryMax={memory}"]
    if group is not None:
        try:
            yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
        finally:
            _remove(group)
    elif shutil.which(scope[0]) and subprocess.run([*scope, "true"], check=False).returncode == 0:
        yield scope
    else:
        yield ["prlimit", f"--as={memory}", "--"]


def _make_group(memory: int) -> Path | None:
    parent = own_memory_cgroup()
    if parent is None:
        return None
    group = parent / f"kserve-lmcache-test-{os.getpid()}-{next(_numbers)}"
    try:
        group.mkdir()
        name = "memory.max" if (group / "memory.max").exists() else "memory.limit_in_bytes"
        (group / name).write_text(str(memory))
    except OSError:  # not ours to make
        return None
    return group


def _remove(group: Path) -> None:
    """Remove a group; its last processes may be about to end."""
    deadline = time.monotonic() + 10
    while (group / "cgroup.procs").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    group.rmdir()
