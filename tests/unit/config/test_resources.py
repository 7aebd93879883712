from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kserve_lmcache.config.resources import Limit, check_memory, cpu_cores, memory_limit
from kserve_lmcache.errors import UsageError
from tests.support.limits import limited

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


def test_no_limit_is_the_machine(root: Path) -> None:
    path = root / "sys/fs/cgroup/memory/memory.limit_in_bytes"
    path.parent.mkdir(parents=True)
    path.write_text("9223372036854771712")
    (root / "proc/self/cgroup").write_text("5:memory:/\n")
    assert memory_limit(root) == Limit(64 * GIB, "the machine's memory")


def test_a_limit_that_cannot_hold_vllms_processes_is_refused(root: Path) -> None:
    cgroup(root, "0::/pod", pod__memory_dot_max=str(2 * GIB))
    with pytest.raises(
        UsageError, match=r"2\.0 GiB of memory \(the container's limit \(memory\.max"
    ):
        check_memory(root)
    cgroup(root, "0::/pod", pod__memory_dot_max=str(3 * GIB))
    check_memory(root)


def test_the_server_says_so_before_it_imports_anything() -> None:
    with limited(512 * 2**20) as prefix:
        command = [*prefix, sys.executable, "-m", "kserve_lmcache", "--model_id=none"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "0.5 GiB of memory (the container's limit" in result.stderr


def test_cores_without_a_quota_are_the_affinity(root: Path) -> None:
    cgroup(root, "0::/", cpu_dot_max="max 100000")
    assert cpu_cores(root) == (sorted(os.sched_getaffinity(0)), "the process's CPU affinity")


@pytest.mark.parametrize(("quota", "count"), [("100000 100000", 1), ("50000 100000", 1)])
def test_a_quota_cuts_the_cores(root: Path, quota: str, count: int) -> None:
    cgroup(root, "0::/", cpu_dot_max=quota)
    cores, reason = cpu_cores(root)
    if len(os.sched_getaffinity(0)) > 1:
        assert reason == f"the container's quota (cpu.max {quota})"
    assert len(cores) == count


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


def test_cores_of_a_process_with_an_affinity() -> None:
    core = max(os.sched_getaffinity(0))
    probe = "from kserve_lmcache.config.resources import cpu_cores; print(cpu_cores())"
    command = ["taskset", "--cpu-list", str(core), sys.executable, "-c", probe]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.strip() == str(([core], "the process's CPU affinity"))
