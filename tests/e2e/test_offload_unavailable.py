"""LMCache cannot start: the server says so and ends, or serves on without it when told to."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.support.processes import wait_for_end
from tests.support.server import START_SECONDS, engine_environment, running, start

IMPOSSIBLE = engine_environment(LMCACHE_MAX_LOCAL_CPU_SIZE="1000000")
# Sound as a configuration; LMCache only finds in the engine that it cannot be made.
FAILS_IN_ENGINE = engine_environment(LMCACHE_MARU_PATH="maru://nowhere:1")


def error_lines(log: str) -> list[str]:
    return [line for line in log.splitlines() if line.startswith("kserve-lmcache: error:")]


def test_an_impossible_size_ends_the_start_with_one_error(logs: Path) -> None:
    server = start(logs / "impossible.log", environ=IMPOSSIBLE)
    assert server.process.wait(seconds=60) == 2
    log = server.process.output()
    assert len(error_lines(log)) == 1
    assert "LMCACHE_MAX_LOCAL_CPU_SIZE: max_local_cpu_size of 1e+06 GiB is more than" in log
    assert "Traceback" not in log


def test_a_failure_in_the_engine_ends_the_start_with_its_reason(logs: Path) -> None:
    server = start(logs / "required.log", environ=FAILS_IN_ENGINE)
    assert server.process.wait(seconds=START_SECONDS) == 1
    (error,) = error_lines(server.process.output())
    assert "packages are required to use MaruBackend" in error
    assert "--offload-required=false" in error


def test_not_required_serves_on_without_it_and_leaves_no_orphan_when_killed(logs: Path) -> None:
    arguments = ("--offload-required=false",)
    with running(logs / "optional.log", *arguments, environ=FAILS_IN_ENGINE) as server:
        assert server.chat("Hello!").choices[0].message.content
        log = server.process.output()
        assert "Serving WITHOUT KV-cache offloading: ImportError" in log
        assert "KV-cache offloading is off" in log
        family = server.process.family()
        server.process.signal(signal.SIGKILL)
        assert wait_for_end(family, seconds=10) == []
