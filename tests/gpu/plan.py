"""The steps, in their order, and how long each may take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CPU, GPU = "cpu", "gpu"
# vLLM's names of the attention backends that a server is told to use.
BACKENDS = {GPU: ("FLASH_ATTN", "FLASHINFER", "TRITON_ATTN"), CPU: ("CPU_ATTN",)}
CORES_OF_A_SERVER = 4  # while it starts


@dataclass(frozen=True)
class Step:
    """One step, which is a process of its own.

    Attributes:
        name: unique, in letters, digits and hyphens.
        what: a sentence for the report.
        module: of ``tests.gpu.steps``.
        budget: seconds after which the step has failed.
        least: seconds that must be left for the step to begin.
        argument: for the module.
        needs: steps that must have passed.
        together: whether the step may run beside its neighbours that are marked so. What is
            measured runs alone.
        stays: whether the step's servers go on until the last step that needs them has ended.
    """

    name: str
    what: str
    module: str
    budget: float
    least: float
    argument: str = ""
    needs: tuple[str, ...] = ()
    together: bool = False
    stays: bool = False


def device_of_machine() -> str:
    """``gpu`` where the kernel's driver shows an NVIDIA GPU, else ``cpu``."""
    return GPU if any(Path("/dev").glob("nvidia[0-9]*")) else CPU


def plan(device: str, is_installed: bool) -> list[Step]:
    """The steps for a device.

    Args:
        device: ``cpu`` or ``gpu``.
        is_installed: whether the environment is there, and no wheels are to be installed.
    """
    found = []
    base: tuple[str, ...] = ()
    if not is_installed:
        found.append(
            Step("install", "The wheels are joined and installed with hashes.", "", 300, 30)
        )
        base = ("install",)
    found += [
        Step("machine", "The device is there.", "machine", 60, 10, needs=base),
        Step("model", "The test model is there.", "model", 90, 10, needs=base),
        Step(
            "doctor",
            "`kserve-lmcache doctor --engine` proves the copy without an engine.",
            "doctor",
            90,
            20,
            needs=("machine", "model"),
            together=True,
        ),
        Step(
            "copy-tests",
            "The property tests of the copy and of the proof pass on the device.",
            "copy_tests",
            150,
            40,
            needs=("machine",),
            together=True,
        ),
    ]
    found += [
        Step(
            f"backend-{name.lower().replace('_', '-')}",
            f"A server with {name} proves the copy. A hit gives the tokens that were computed.",
            "backend",
            200,
            60,
            argument=name,
            needs=("machine", "model"),
            together=True,
        )
        for name in BACKENDS[device]
    ]
    found += [
        Step(
            "replicas",
            "Two servers and one Redis start, and a server with `--offload=off`.",
            "replicas",
            200,
            60,
            needs=("machine", "model"),
            stays=True,
        ),
        Step(
            "shared",
            "A prompt that one server computed gives the same tokens from the Redis.",
            "shared",
            150 if device == CPU else 60,
            15,
            needs=("replicas",),
        ),
        Step(
            "ttft",
            "Time to first token: computed, from the local tier, from the Redis.",
            "ttft",
            150,
            30,
            needs=("replicas",),
        ),
        Step(
            "tpot",
            "Time per output token of a busy server, with offloading and without.",
            "tpot",
            120,
            30,
            needs=("replicas",),
        ),
        Step(
            "stall",
            "The longest gap between tokens of running answers during a load and a lookup.",
            "stall",
            240,
            90,
            needs=("machine", "model"),
        ),
    ]
    return found
