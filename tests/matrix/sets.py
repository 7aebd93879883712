"""The sets of versions that are supported, and their environments."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".venv-matrix"
# The lock of each set in requirements/, the newest set last. `make test` tests the newest set.
LOCKS = {"0.24": "vllm-0.24", "0.28": "vllm-0.28", "0.32": "test"}
# Their locks name torch themselves. The torch of the others is the CPU build (Makefile).
WITH_TORCH = ("vllm-0.24",)


def python_of(name: str) -> Path:
    """The interpreter of a set's environment."""
    return ENVIRONMENTS / name / "bin" / "python"
