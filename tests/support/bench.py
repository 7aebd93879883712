"""The benchmark command and its log."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.server import engine_environment

COMMAND = (sys.executable, "-m", "kserve_lmcache", "bench")


def bench(
    *arguments: str, timeout: float = 240, **environ: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env=engine_environment(**environ),
    )


def lines(directory: Path, kind: str = "request") -> list[dict[str, Any]]:
    """The log's lines of a type."""
    read = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return [line for line in read if line["type"] == kind]


def report(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "report.json").read_text())
    return found
