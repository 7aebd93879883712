from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kserve_lmcache.config.resources import (
    Cores,
    Limit,
    cpu_cores,
    free_memory,
    memory_limit,
    resident_memory,
)
from tests.support.limits import cpu_limited, limited

GIB = 2**30


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal:       67108864 kB\nMemFree: 1 kB\n")
    return tmp_path


def cgroup(root: Path, line: str, **files: str) -> None:
    (root / "proc/self/cgroup").write_text(line + "\n")
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def test_memory_of_cgroup_v2(root: Path) -> None:
    cgroup(root, "0::/pod/container", pod__container__memory_dot_max="4294967296")
    assert memory_limit(root) == Limit(4 * GIB, "the container's limit (memory.max)")


def test_the_least_limit_of_all_ancestors_counts(root: Path) -> None:
    cgroup(
        root,
        "0::/pod/container",
        pod__container__memory_dot_max="max",
        pod__memory_dot_max=str(2 * GIB),
        memory_dot_max=str(8 * GIB),
    )
    assert memory_limit(root).value == 2 * GIB


def test_memory_of_cgroup_v1(root: Path) -> None:
    path = root / "sys/fs/cgroup/memory/memory.limit_in_bytes"
    path.parent.mkdir(parents=True)
    path.write_text(str(3 * GIB))
    (root / "proc/self/cgroup").write_text("5:memory:/\n4:cpu,cpuacct:/\n")
    expected = Limit(3 * GIB, "the container's limit (memory.limit_in_bytes)")
    assert memory_limit(root) == expected


def test_the_memory_that_a_limit_leaves(root: Path) -> None:
    cgroup(
        root,
        "0::/pod/container",
        pod__container__memory_dot_max=str(4 * GIB),
        pod__container__memory_dot_current=str(3 * GIB),
        pod__container__memory_dot_stat=f"anon {GIB}\ninactive_file {GIB // 4}\n"
        f"active_file {GIB // 4}",
        pod__memory_dot_max="max",
        pod__memory_dot_current=str(9 * GIB),
    )
    free = free_memory(root)
    assert free == Limit(1.5 * GIB, "the container's limit (memory.max), less what it uses")


def test_the_memory_of_this_process(root: Path) -> None:
    (root / "proc/self/statm").write_text("9000 512 3 4 5 6 7\n")
    assert resident_memory(root) == 512 * os.sysconf("SC_PAGE_SIZE")
    assert resident_memory() > 2**20


def test_the_memory_that_a_limit_of_version_1_leaves(root: Path) -> None:
    folder = root / "sys/fs/cgroup/memory"
    folder.mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("5:memory:/\n")
    (folder / "memory.limit_in_bytes").write_text(str(2 * GIB))
    (folder / "memory.usage_in_bytes").write_text(str(GIB))
    free = free_memory(root)
    assert free is not None
    assert free.value == GIB
    (folder / "memory.limit_in_bytes").write_text("9223372036854771712")
    assert free_memory(root) is None


def test_no_limit_is_the_machine(root: Path) -> None:
    path = root / "sys/fs/cgroup/memory/memory.limit_in_bytes"
    path.parent.mkdir(parents=True)
    path.write_text("9223372036854771712")
    (root / "proc/self/cgroup").write_text("5:memory:/\n")
    assert memory_limit(root) == Limit(64 * GIB, "the machine's memory")


OWN = sorted(os.sched_getaffinity(0))


def test_without_a_quota_every_core_has_a_thread(root: Path) -> None:
    cgroup(root, "0::/", cpu_dot_max="max 100000")
    assert cpu_cores(root) == Cores(len(OWN), tuple(OWN), "the process's CPU affinity")


@pytest.mark.parametrize(("quota", "count"), [("100000 100000", 1), ("50000 100000", 1)])
def test_a_quota_limits_the_number_and_no_place(root: Path, quota: str, count: int) -> None:
    assert len(OWN) > 1, "the test needs two cores"
    cgroup(root, "0::/", cpu_dot_max=quota)
    assert cpu_cores(root) == Cores(count, (), f"the container's quota (cpu.max {quota})")


def test_a_quota_of_as_many_cores_as_there_are_leaves_the_affinity(root: Path) -> None:
    cgroup(root, "0::/", cpu_dot_max=f"{len(OWN) * 100000} 100000")
    assert cpu_cores(root).bound == tuple(OWN)


PROBE = (
    "from kserve_lmcache.config.resources import memory_limit as m; print(m().value, m().source)"
)


def test_a_process_under_a_real_limit() -> None:
    with limited(512 * 2**20) as prefix:
        command = [*prefix, sys.executable, "-c", PROBE]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    value, _, source = output.strip().partition(" ")
    assert float(value) == 512 * 2**20
    assert "limit (" in source


def test_a_process_under_a_limit_of_its_own() -> None:
    command = ["prlimit", f"--as={2 * GIB}", "--", sys.executable, "-c", PROBE]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.strip() == f"{2 * GIB} the process's limit (ulimit -v)"


CORES_PROBE = "from kserve_lmcache.config.resources import cpu_cores; print(cpu_cores().bound)"


def test_a_real_affinity_is_bound_to() -> None:
    core = max(OWN)
    command = ["taskset", "--cpu-list", str(core), sys.executable, "-c", CORES_PROBE]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.strip() == str((core,))


def test_containers_with_a_real_quota_do_not_choose_the_same_cores() -> None:
    with cpu_limited(1.0) as prefix:
        command = [*prefix, sys.executable, "-c", CORES_PROBE.replace(".bound", "")]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.startswith("Cores(count=1, bound=(), source=\"the container's quota (")
