"""The accelerator and its driver, without importing torch."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
from collections.abc import Iterator

from kserve_lmcache.doctor.check import Check, Finding, Subject, failure, foreign, ok, warning
from kserve_lmcache.doctor.local import installed

NAME = "accelerator"

# The oldest driver for all releases of a CUDA major version, by NVIDIA's "CUDA Compatibility".
_LEAST_DRIVER = {12: 525, 13: 580}
_FIX_NONE = "Ask for a GPU (resources.limits nvidia.com/gpu), and look at the node's driver."
_QUERY = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")


def accelerator(subject: Subject) -> Iterator[Finding]:
    """Whether the torch that is installed finds the device that it was built for."""
    command = shutil.which("nvidia-smi", path=subject.environ.get("PATH"))
    driver = subject.root / "proc/driver/nvidia/version"
    if command is None and not driver.exists():
        yield _without()
        return
    if command is None:
        # The driver's tools are absent where NVIDIA_DRIVER_CAPABILITIES leaves out "utility".
        first = driver.read_text(errors="replace").partition("\n")[0]
        yield _judge(foreign(first, None), _first_version(first))
        return
    try:
        result = subprocess.run(  # noqa: S603
            [command, *_QUERY],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=2 * subject.patience,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield failure(
            NAME,
            f"nvidia-smi does not answer within {2 * subject.patience:g} s",
            "The driver hangs: see the node's kernel log for Xid errors, and restart the node.",
        )
        return
    if result.returncode:
        yield failure(
            NAME,
            f"nvidia-smi failed: {foreign(result.stdout or result.stderr, None)}",
            _FIX_NONE,
        )
        return
    devices = [line.split(", ") for line in result.stdout.splitlines() if line.count(", ") >= 2]
    if not devices:
        yield failure(NAME, f"nvidia-smi names no GPU: {foreign(result.stdout, None)}", _FIX_NONE)
        return
    shown = "; ".join(f"{name}, {memory}" for name, memory, *_ in devices)
    driver_version = devices[0][2]
    yield _judge(f"{shown}; driver {driver_version}", driver_version)


def _without() -> Finding:
    torch = installed(("torch",)) or ""
    if "+cpu" in torch or not torch:
        return ok(NAME, "no GPU: the model runs on the CPU")
    return warning(
        NAME,
        f"no NVIDIA GPU, and torch {torch} is not a CPU build",
        "Ask for a GPU (resources.limits nvidia.com/gpu), or install kserve-lmcache[cpu].",
    )


def _judge(evidence: str, driver: str) -> Finding:
    """Judge what was seen by the driver's version and by what torch was built for."""
    torch = installed(("torch",)) or ""
    if "+cpu" in torch:
        return warning(
            NAME,
            f"{evidence}; torch {torch} does not use it",
            "Install kserve-lmcache[gpu], or do not ask for a GPU.",
        )
    cuda = _cuda_major()
    least = _LEAST_DRIVER.get(cuda or 0)
    if least is not None and driver and int(driver.split(".")[0]) < least:
        return warning(
            NAME,
            f"{evidence}, and torch {torch} is built for CUDA {cuda}",
            f"Install driver {least} or later on the node, or NVIDIA's cuda-compat package.",
        )
    return ok(NAME, evidence)


def _cuda_major() -> int | None:
    """The CUDA version that torch's own packages bring; from 13 on their name does not tell."""
    for distribution in ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12"):
        try:
            return int(importlib.metadata.version(distribution).split(".")[0])
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _first_version(text: str) -> str:
    match = re.search(r"\d+\.\d+(\.\d+)?", text)
    return match[0] if match else ""


CHECK = Check(NAME, accelerator)
