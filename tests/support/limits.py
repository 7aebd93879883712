"""Runs a command under a real limit: of a control group where one can be made."""

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
_PERIOD_US = 100_000
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
            yield _in_group(group)
        finally:
            _remove(group)
    elif shutil.which(scope[0]) and subprocess.run([*scope, "true"], check=False).returncode == 0:
        yield scope
    else:
        yield ["prlimit", f"--as={memory}", "--"]


@contextmanager
def cpu_limited(cores: float) -> Iterator[Sequence[str]]:
    """What stands before a command to run it under a quota of ``cores`` CPU cores."""
    group = _own_cgroup("cpu", "cpu.max") / _name()
    group.mkdir()
    quota = int(cores * _PERIOD_US)
    try:
        if (group / "cpu.max").exists():
            (group / "cpu.max").write_text(f"{quota} {_PERIOD_US}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(quota))
        yield _in_group(group)
    finally:
        _remove(group)


def _own_cgroup(controller: str, file: str) -> Path:
    """The directory of this process's cgroup of a controller, version 1 or 2."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return CGROUPS / controller / path.lstrip("/")
        if not controllers and (CGROUPS / path.lstrip("/") / file).exists():
            return CGROUPS / path.lstrip("/")
    raise AssertionError(f"this process has no cgroup with {file}")


def _in_group(group: Path) -> list[str]:
    return ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]


def _name() -> str:
    return f"kserve-lmcache-test-{os.getpid()}-{next(_numbers)}"


def _make_group(memory: int) -> Path | None:
    parent = own_memory_cgroup()
    if parent is None:
        return None
    group = parent / _name()
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
