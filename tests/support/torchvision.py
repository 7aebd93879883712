"""torchvision for the processors of pictures, of the version that the image for GPUs has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.server import ROOT

STAND_IN = ROOT / "tests" / "support" / "stand_in_torchvision"


def python_path(directory: Path) -> str:
    """Install it into a directory; a ``PYTHONPATH`` that has it, and its stand-in before it."""
    lock = (ROOT / "requirements" / "gpu.txt").read_text()
    entry = re.search(r"^torchvision==.*\\\n(?:    --hash=.*\n)+", lock, re.MULTILINE)
    assert entry, "requirements/gpu.txt has no torchvision"
    wanted = directory / "requirements.txt"
    wanted.write_text(entry[0])
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    command += ["--no-deps", "--require-hashes", "--target", str(directory), "-r", str(wanted)]
    subprocess.run(command, check=True, timeout=120)
    paths = [str(STAND_IN), str(directory), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.pathsep.join(paths)
