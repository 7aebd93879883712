"""The step that installs the wheels: ``python -m tests.gpu.install WHEELS ENVIRONMENT RESULT``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.gpu.wheels import WheelsError, install


def main(wheels: str, environment: str, result: str) -> int:
    try:
        found = {"facts": {"environment": install(Path(wheels), Path(environment))}}
        code = 0
    except (WheelsError, subprocess.CalledProcessError, OSError) as error:
        found, code = {"error": str(error)}, 1  # type: ignore[dict-item]
    Path(result).write_text(json.dumps(found))
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
