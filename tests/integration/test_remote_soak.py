"""During traffic and faults nothing grows: memory, file descriptors, threads, the queue."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.options import option
from tests.support.server import ROOT

SECONDS = option("--soak-seconds")


@pytest.mark.timeout(2 * SECONDS + 150)
def test_nothing_grows(tmp_path: Path) -> None:
    # In this process there is also what other tests have left.
    command = [sys.executable, "-m", "tests.support.soak", str(SECONDS), str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=2 * SECONDS + 120
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    taken, found = seen["figures"], seen["report"]
    first, last = taken[seen["faults"]], taken[-1]
    print(f"\n{len(taken)} times, from {first} to {last}\n{found}")
    assert last["mib"] < first["mib"] + 20
    assert last["files"] <= first["files"] + 3
    assert last["threads"] <= first["threads"] + 3
    assert found["queue_bytes_max"] <= seen["queue_limit"]
    assert found["exceptions"] == 0
    assert found["chunks_read"] > 100
    assert found["opened"] >= seen["faults"]
