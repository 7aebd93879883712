"""The processes of a cache server: none stays behind, and the one that serves comes back."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from kserve_lmcache.cache_server import supervisor as module
from kserve_lmcache.cache_server.announcement import announced
from kserve_lmcache.cache_server.supervisor import Supervisor
from kserve_lmcache.compat.lmcache.storage import SHARED_MEMORY
from kserve_lmcache.config import engine_file
from kserve_lmcache.metrics.snapshots import read_files
from tests.support.cache_server import MIB, cache_server
from tests.support.processes import wait_for_end
from tests.support.waiting import until

SIZE = 8 * MIB
# One that forks, one that serves, and Python's, which removes shared memory.
PROCESSES = 3


def segments() -> set[Path]:
    return set(SHARED_MEMORY.glob("lmcache_l1_pool_kserve-*"))


def test_it_announces_itself_to_its_user_alone(tmp_path: Path) -> None:
    with cache_server(tmp_path, SIZE) as server:
        found = announced(tmp_path)
        assert found is not None
        socket = tmp_path / found.socket
        assert stat.S_ISSOCK(socket.stat().st_mode)
        (segment,) = (each for each in segments() if found.incarnation in each.name)
        assert segment.stat().st_mode & 0o077 == 0
        # Nothing listens on a network.
        serving = server.serving
        assert [each for each in serving.connections("inet") if each.status == "LISTEN"] == []
    assert announced(tmp_path) is None
    assert not segment.exists()
    assert not socket.exists()


def test_it_ends_by_a_signal_and_leaves_nothing(tmp_path: Path) -> None:
    with cache_server(tmp_path, SIZE) as server:
        family = server.process.family()
        assert len(family) == PROCESSES
        began = time.monotonic()
        server.process.signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
        assert time.monotonic() - began < 6
    assert wait_for_end(family, 1) == []


def test_the_one_that_serves_ends_with_the_other(tmp_path: Path) -> None:
    with cache_server(tmp_path, SIZE) as server:
        family = server.process.family()
        server.process.signal(signal.SIGKILL)
        assert wait_for_end(family, 5) == []


def test_another_serves_soon_after_one_was_killed(tmp_path: Path) -> None:
    with cache_server(tmp_path, SIZE) as server:
        before, left = server.incarnation, segments()
        server.serving.kill()
        assert until(lambda: server.incarnation not in ("", before)) < 3
        # The segment of the one that was killed is gone.
        assert not [each for each in segments() & left if before in each.name]
        (ended,) = (
            each
            for each in read_files(tmp_path).values()
            if "cache_server" in each and each["cache_server"] is None
        )
        assert not [name for name, *_ in ended["metrics"] if name == "local_cpu_capacity_bytes"]
        until(lambda: any(each.get("cache_server") for each in read_files(tmp_path).values()))


def test_one_that_dies_again_and_again_is_started_less_and_less_often(tmp_path: Path) -> None:
    with cache_server(tmp_path, SIZE) as server:
        pauses = []
        for _ in range(4):
            before = server.incarnation
            server.serving.kill()
            pauses.append(until(lambda before=before: server.incarnation not in ("", before), 20))
        assert pauses == sorted(pauses)
        assert pauses[-1] > 1.5


def test_a_memory_that_has_no_room_is_said(tmp_path: Path) -> None:
    file = tmp_path / "lmcache.yaml"
    engine_file.write({"chunk_size": 256}, None, file)
    command = [sys.executable, "-m", "kserve_lmcache.cache_server", str(file), str(2**40)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = next(line for line in process.stderr if "failed" in line)
        process.terminate()
    assert "No space left" in said
    assert announced(tmp_path) is None


STARTED = """
import sys, time
from pathlib import Path
from kserve_lmcache.cache_server.supervisor import Supervisor
Supervisor(Path(sys.argv[1]), int(sys.argv[2]))
time.sleep(60)
"""


def test_it_ends_with_the_server_that_started_it(tmp_path: Path) -> None:
    file = tmp_path / "lmcache.yaml"
    engine_file.write({"chunk_size": 256}, None, file)
    command = [sys.executable, "-c", STARTED, str(file), str(SIZE)]
    with subprocess.Popen(command) as process:
        until(lambda: announced(tmp_path) is not None, 30)
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) == PROCESSES
        process.kill()
    assert wait_for_end(family, 5) == []


def test_a_supervisor_starts_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE", 0.1)
    file = tmp_path / "lmcache.yaml"
    engine_file.write({"chunk_size": 256}, None, file)
    supervisor = Supervisor(file, SIZE)
    try:
        until(lambda: announced(tmp_path) is not None, 30)
        before = announced(tmp_path)
        os.kill(supervisor._process.pid, signal.SIGKILL)
        until(lambda: announced(tmp_path) not in (None, before), 30)
    finally:
        supervisor.stop()
    assert announced(tmp_path) is None
