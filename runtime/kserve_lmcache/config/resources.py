"""The memory, the CPU cores and the directories of this container.

Limits come from cgroup v2 (https://docs.kernel.org/admin-guide/cgroup-v2.html: ``memory.max``,
``cpu.max``) or v1 (``memory.limit_in_bytes``, ``cpu.cfs_quota_us``), and else from the machine.
"""

from __future__ import annotations

import mmap
import os
import resource
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# Without a limit, cgroup v1 reports the largest page-aligned integer.
_V1_UNLIMITED = 1 << 60
# Of version 2 and of version 1: the limit, the usage, and what memory.stat has of files.
_MEMORY_FILES = (
    ("memory.max", "memory.current", ("active_file", "inactive_file")),
    (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_active_file", "total_inactive_file"),
    ),
)
# The source of a limit that each process has for itself, and that counts what it does not use.
ADDRESS_SPACE = "the process's limit (ulimit -v)"


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
    limits = [Limit(machine_memory(root), "the machine's memory")]
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        limits.append(Limit(address_space, ADDRESS_SPACE))
    for directory in _cgroup_directories(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(directory / name)
            if text and text.isdigit() and int(text) < _V1_UNLIMITED:
                limits.append(Limit(int(text), f"the container's limit ({name})"))
    return min(limits, key=lambda limit: limit.value)


def free_memory(root: Path = Path("/")) -> Limit | None:
    """The memory that the container's limit leaves, in bytes; ``None`` without a limit.

    The pages of files count as free: the kernel drops them before it ends a process.

    Args:
        root: the directory of ``/proc`` and ``/sys``.
    """
    free = []
    for directory in _cgroup_directories(root, "memory"):
        for limit, usage, files in _MEMORY_FILES:
            most, used = _read(directory / limit), _read(directory / usage)
            if not (most and used and most.isdigit() and used.isdigit()):
                continue
            if int(most) < _V1_UNLIMITED:
                dropped = _statistics(directory / "memory.stat", files)
                left = int(most) - int(used) + dropped
                free.append(Limit(left, f"the container's limit ({limit}), less what it uses"))
    return min(free, key=lambda limit: limit.value, default=None)


def resident_memory(root: Path = Path("/")) -> int:
    """The memory that this process takes, in bytes.

    Args:
        root: the directory of ``/proc``.
    """
    _, pages, *_ = (_read(root / "proc/self/statm") or "0 0").split()
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _statistics(path: Path, names: Sequence[str]) -> int:
    """The sum of the numbers behind names in a file of names and numbers."""
    pairs = (line.partition(" ") for line in (_read(path) or "").splitlines())
    return sum(int(value) for name, _, value in pairs if name in names and value.isdigit())


@dataclass(frozen=True)
class Cores:
    """How many threads compute at a time, and where.

    Attributes:
        count: the threads that the container has the CPU time for; at least one.
        bound: the cores to bind them to, one each; empty when they may run on any core.
        source: what limits the count.
    """

    count: int
    bound: tuple[int, ...]
    source: str


def cpu_cores(root: Path = Path("/")) -> Cores:
    """The threads for computing, and the cores to bind them to.

    A quota limits time and no place. All containers of a node see the same cores, so containers
    that chose some of them by themselves would all choose the same ones. Without a quota below the
    affinity, each core that this process may use gets a thread: unbound threads share cores with
    vLLM's scheduler, which spins, and wait for each other (``benchmarks/cores.py``). A fraction of
    a core is not used: a throttled thread delays all others at every barrier.

    Args:
        root: the directory of ``/proc`` and ``/sys``.
    """
    affinity = sorted(os.sched_getaffinity(0))
    quota = _cpu_quota(root)
    if quota is not None and quota.value < len(affinity):
        return Cores(max(1, int(quota.value)), (), quota.source)
    return Cores(len(affinity), tuple(affinity), "the process's CPU affinity")


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


def machine_memory(root: Path = Path("/")) -> int:
    """The memory of the machine, in bytes.

    Args:
        root: the directory of ``/proc``.
    """
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
