"""The metrics of a server are its own: no other command and no other server changes them."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from kserve_lmcache.config import metrics_directory
from kserve_lmcache.errors import UsageError
from tests.support.server import MODEL, ROOT, engine_environment

# What a server does with the directory, without an engine.
SERVER = """
import os, sys
from kserve_lmcache.config import metrics_directory
print(metrics_directory.make(os.environ), flush=True)
import prometheus_client
counter = prometheus_client.Counter("requests", "of the test")
counter.inc(7)
print("ready", flush=True)
sys.stdin.readline()
"""
OTHER_COMMANDS = (
    ["config"],
    ["config", "--engine", f"--model_id={MODEL}", "--offload=off"],
    ["doctor", "--timeout=2"],
    ["bench", "report", "/nonexistent"],
    ["demo-model", "--help"],
    ["serve", "--http_port=abc"],
    ["--version"],
    ["--help"],
)


@contextmanager
def server(parent: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """Its directory, and the process."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        env=environment(parent),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        directory = Path(process.stdout.readline().strip())
        assert process.stdout.readline() == "ready\n"
        yield directory, process
    finally:
        process.kill()
        process.communicate()


def environment(parent: Path) -> dict[str, str]:
    return engine_environment(PROMETHEUS_MULTIPROC_DIR=str(parent))


def contents(directory: Path) -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    parent = tmp_path_factory.mktemp("metrics") / "not" / "there"
    with server(parent) as (directory, _):
        yield directory


@pytest.mark.parametrize("command", OTHER_COMMANDS, ids=" ".join)
def test_no_other_command_touches_it(live: Path, command: list[str]) -> None:
    before = contents(live)
    assert any(name.endswith(".db") for name in before)
    (live.parent / "users.db").write_bytes(b"of somebody else")
    subprocess.run(
        [str(ROOT / "entrypoint.sh"), *command], env=environment(live.parent), capture_output=True
    )
    assert contents(live) == before
    assert {path.name for path in live.parent.iterdir()} == {live.name, "users.db"}


def test_other_commands_find_the_directories_of_live_servers(live: Path) -> None:
    variables = {"PROMETHEUS_MULTIPROC_DIR": str(live.parent)}
    with server(live.parent) as (second, process):
        assert set(metrics_directory.of_live_servers(variables)) == {live, second}
        process.kill()
        process.wait()
        assert second.exists()
        assert metrics_directory.of_live_servers(variables) == [live]
    assert metrics_directory.of_live_servers({"PROMETHEUS_MULTIPROC_DIR": "/nonexistent"}) == []


def test_a_second_server_has_its_own(live: Path) -> None:
    before = contents(live)
    with server(live.parent) as (second, process):
        assert second.parent == live.parent
        assert second != live
        process.communicate("")
        assert not second.exists(), "a server that ends removes what it made"
    assert contents(live) == before


def test_what_a_killed_server_left_is_removed_by_the_next(tmp_path: Path) -> None:
    strange = tmp_path / f"{metrics_directory.PREFIX}of-a-user"
    strange.mkdir()
    with server(tmp_path) as (first, process):
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert first.exists()
    with server(tmp_path) as (second, _):
        assert not first.exists()
        assert second.exists()
        assert strange.exists(), "no server made it"


@pytest.mark.parametrize("name", ["PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"])
def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UsageError, match="cannot hold the metrics of this server: Not a directory"):
        metrics_directory.make({name: str(file / "below")})


def test_the_old_name_of_the_variable_counts_as_well(tmp_path: Path) -> None:
    environ = {"prometheus_multiproc_dir": str(tmp_path)}
    own = metrics_directory.make(environ)
    assert environ == {"PROMETHEUS_MULTIPROC_DIR": str(own)}
    assert own.parent == tmp_path
    assert own.stat().st_mode & 0o777 == 0o700
