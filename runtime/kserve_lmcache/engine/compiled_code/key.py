"""What compiled code depends on and vLLM's own hashes leave out: versions, processor, directory.

vLLM's hashes cover its configuration, the model's and its sources. They do not cover the processor:
a CPU without AVX-512 ends a process that runs code for it.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sys
from pathlib import Path

from kserve_lmcache.compat import vllm


def directory_of(model: str, name: str, working_directory: Path, root: Path = Path("/")) -> Path:
    """Returns the relative directory of the code of a model, for this machine and these versions.

    Args:
        model: directory or hub id, with the revision.
        name: of the model, for people.
        working_directory: where the code is compiled. vLLM 0.24 keeps absolute paths.
        root: the directory of ``/proc``.
    """
    parts = {
        "model": model,
        "working_directory": str(working_directory),
        "python": sys.version,
        "torch": _torch(),
        "machine": platform.machine(),
        "processor": _processor(root),
        "gpus": _gpus(root),
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    return Path(f"vllm-{_word(vllm.release())}", f"{_word(name)}-{digest}")


def _word(text: str) -> str:
    """Returns the text as a part of a path."""
    return re.sub(r"[^\w.+-]", "-", text).lstrip(".")[:80] or "model"


def _torch() -> str:
    import torch

    return str(torch.__version__)


def _processor(root: Path) -> list[str]:
    """Returns the instruction sets of the first processor, and its model."""
    try:
        first, _, _ = (root / "proc/cpuinfo").read_text().partition("\n\n")
    except OSError:
        return []
    wanted = ("flags", "Features", "model name", "CPU part")
    lines = (line.partition(":") for line in first.splitlines())
    return [" ".join(sorted(value.split())) for name, _, value in lines if name.strip() in wanted]


def _gpus(root: Path) -> list[str]:
    """Returns the models of the GPUs, each once."""
    places = (root / "proc/driver/nvidia/gpus").glob("*/information")
    models = {
        line.partition(":")[2].strip()
        for place in places
        for line in place.read_text(errors="replace").splitlines()
        if line.startswith("Model:")
    }
    return sorted(models)
