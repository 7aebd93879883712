"""The memory, the CPU cores and the directories of this container.

Limits come from cgroup v2 (https://docs.kernel.org/admin-guide/cgroup-v2.html: ``memory.max``,
``cpu.max``) or v1 (``memory.limit_in_bytes``, ``cpu.cfs_quota_us``), and else from the machine.
"""

from __future__ import annotations

import mmap
import os
import resource
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kserve_lmcache.errors import UsageError

# Without a limit, cgroup v1 reports the largest page-aligned integer.
_V1_UNLIMITED = 1 << 60
# Bytes. Three processes import vLLM, and take some 3 GiB together.
LEAST_MEMORY = 2.5 * 2**30


@dataclass(frozen=True)
class Limit:
    """A limit and its source. ``value`` is in bytes (memory) or cores (CPU)."""

    value: float
    source: str


def memory_limit(root: Path = Path("/")) -> Limit:
    """The memory that this process may use, in bytes.

    Args:
        root: the directory of ``/proc`` and ``/sys``.
    """
    limits = [Limit(_machine_memory(root), "the machine's memory")]
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        limits.append(Limit(address_space, "the process's limit (ulimit -v)"))
    for directory in _cgroup_directories(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(directory / name)
            if text and text.isdigit() and int(text) < _V1_UNLIMITED:
                limits.append(Limit(int(text), f"the container's limit ({name})"))
    return min(limits, key=lambda limit: limit.value)


def check_memory(root: Path = Path("/")) -> None:
    """Refuses a limit under which the kernel kills vLLM's processes before a model is loaded.

    Raises:
        UsageError: the limit is too low.
    """
    limit = memory_limit(root)
    if limit.value < LEAST_MEMORY:
        raise UsageError(
            f"{limit.value / 2**30:.1f} GiB of memory ({limit.source}) cannot hold vLLM's "
            f"processes: they take at least {LEAST_MEMORY / 2**30:g} GiB without a model. Raise "
            "the limit (docker run --memory, resources.limits.memory)."
        )


def cpu_cores(root: Path = Path("/")) -> tuple[list[int], str]:
    """The cores for computing, and the source of the limit.

    These are cores of the process's affinity, as many as the CPU quota allows and at least one. A
    fraction of a core is not used: a throttled thread delays all others at every barrier.
    """
    cores = sorted(os.sched_getaffinity(0))
    quota = _cpu_quota(root)
    if quota is None or quota.value >= len(cores):
        return cores, "the process's CPU affinity"
    return cores[: max(1, int(quota.value))], quota.source


def write_error(directory: Path) -> OSError | None:
    """Write a file to the directory. Returns the error, or None when the file was written."""
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(os.urandom(16))
            file.flush()
    except OSError as error:
        return error
    return None


def execute_error(directory: Path) -> OSError | None:
    """Map a file of the directory as code, as a loader does. Returns the error, or None."""
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(bytes(mmap.PAGESIZE))
            file.flush()
            mmap.mmap(file.fileno(), mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_EXEC).close()
    except OSError as error:
        return error
    return None


def nearest_existing(directory: Path) -> Path:
    """The directory, or its nearest parent that exists."""
    directory = directory.absolute()
    return next(each for each in (directory, *directory.parents) if each.exists())


def why_unwritable(directory: Path) -> str | None:
    """The text of :func:`write_error`."""
    error = write_error(directory)
    return None if error is None else error.strerror or str(error)


def _cpu_quota(root: Path) -> Limit | None:
    quotas = []
    for directory in _cgroup_directories(root, "cpu"):
        text = _read(directory / "cpu.max")
        if text and not text.startswith("max"):
            quota, period = (float(word) for word in text.split())
            quotas.append(Limit(quota / period, f"the container's quota (cpu.max {text})"))
        quota_us = _read(directory / "cpu.cfs_quota_us")
        period_us = _read(directory / "cpu.cfs_period_us")
        if quota_us and period_us and float(quota_us) > 0:
            source = f"the container's quota (cpu.cfs_quota_us {quota_us})"
            quotas.append(Limit(float(quota_us) / float(period_us), source))
    return min(quotas, key=lambda limit: limit.value, default=None)


def _cgroup_directories(root: Path, controller: str) -> Iterator[Path]:
    """The cgroup of this process and its ancestors. Each of them may have a limit."""
    mount = root / "sys/fs/cgroup"
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base = mount
        elif controller in controllers.split(","):
            base = mount / controller
        else:
            continue
        own = base / path.lstrip("/")
        yield from (level for level in (own, *own.parents) if level.is_relative_to(base))


def _machine_memory(root: Path) -> int:
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
