"""Command-line tools that come as wheels, beside the interpreter that runs the tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def run(tool: str, *arguments: str) -> str:
    """What the tool has to complain about; nothing when it is content.

    A tool that is missing fails the test: what it would have found must not pass unseen.
    """
    executable = Path(sys.executable).with_name(tool)
    assert executable.exists(), f"{tool} is not installed beside {sys.executable}"
    finished = subprocess.run(
        [str(executable), *arguments], capture_output=True, text=True, check=False
    )
    complaint = finished.stdout + finished.stderr
    return complaint or ("" if finished.returncode == 0 else f"exit status {finished.returncode}")
