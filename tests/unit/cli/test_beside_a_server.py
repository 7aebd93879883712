"""``config`` and ``doctor`` beside a server: whose configuration they show, and what they take."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from kserve_lmcache.cli import running
from kserve_lmcache.config.configuration import Shown
from kserve_lmcache.config.resources import Limit
from kserve_lmcache.config.server_file import RunningServer
from kserve_lmcache.errors import UsageError
from tests.support.beside import StandIn, command, stand_in
from tests.support.limits import limited
from tests.support.server import MODEL, engine_environment

SECRET = "hunter2-of-the-test"
FLAGS = (
    "serve",
    f"--model_id={MODEL}",
    f"--api-key={SECRET}",
    "--max-model-len=512",
    "--lmcache",
    "chunk_size=128",
)
# What a command beside a server must not import, for the sake of its memory.
HEAVY = {"torch", "vllm", "lmcache", "kserve", "numpy", "prometheus_client", "transformers"}
MIB = 2**20


@pytest.fixture(scope="module")
def environ() -> dict[str, str]:
    return engine_environment(LMCACHE_REMOTE_URL=f"redis://:{SECRET}@127.0.0.1:1")


@pytest.fixture(scope="module")
def server(environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    with stand_in(tmp_path_factory.mktemp("server"), environ, *FLAGS[1:]) as server:
        yield server


def test_config_prints_what_the_server_has(server: StandIn, environ: dict[str, str]) -> None:
    done = command({**environ, "LMCACHE_CHUNK_SIZE": "64"}, "config")
    assert done.code == 0, done.errors
    lines = done.output.splitlines()
    assert "chunk_size: 128  # --lmcache chunk_size" in lines
    note = f"# This is the configuration of the running server: pid {server.pid} (port 8080)"
    assert note in lines
    assert yaml.safe_load(done.output)["remote_url"] == "redis://:***@127.0.0.1:1"
    as_json = json.loads(command(environ, "config", "--json").output)
    assert as_json["values"]["chunk_size"] == {"value": 128, "source": "--lmcache chunk_size"}
    explained = command(environ, "config", "--explain", "chunk_size").output
    assert "  value    128 (--lmcache chunk_size)" in explained


def test_flags_are_about_another_server(server: StandIn, environ: dict[str, str]) -> None:
    done = command(environ, "config", "--lmcache", "chunk_size=64")
    assert "chunk_size: 64  # --lmcache chunk_size" in done.output
    assert "running server" not in done.output
    both = command(environ, "config", f"--pid={server.pid}", "--offload=off")
    assert both.code == 2
    assert "--pid names a running server, and other flags describe another one" in both.errors


def test_one_of_several_servers_is_chosen(
    server: StandIn, environ: dict[str, str], tmp_path: Path
) -> None:
    with stand_in(tmp_path, environ, "--lmcache", "chunk_size=512") as second:
        for name in ("config", "doctor"):
            several = command(environ, name)
            assert several.code == 2
            for each in (server, second):
                assert f"pid {each.pid} (port 8080)" in several.errors
        chosen = command(environ, "config", f"--pid={second.pid}")
        assert "chunk_size: 512" in chosen.output
        wrong = command(environ, "config", "--pid=1")
        assert wrong.code == 2
        assert "no server of this user has the number 1; these run here: pid" in wrong.errors
    assert "chunk_size: 128" in command(environ, "config").output


def test_doctor_looks_at_what_the_server_was_started_with(
    server: StandIn, environ: dict[str, str]
) -> None:
    done = command(environ, "doctor", "--json", "--timeout=1")
    assert done.code == 1
    found = {each["name"]: each for each in json.loads(done.output)["findings"]}
    assert f"of the running server: pid {server.pid}" in found["configuration"]["evidence"]
    assert found["remote connection"]["status"] == "failure"
    assert found["model"]["status"] == "ok"
    assert "changes" not in found
    changed = command({**environ, "LMCACHE_REMOTE_TTL": "7"}, "doctor", "--json", "--timeout=1")
    found = {each["name"]: each for each in json.loads(changed.output)["findings"]}
    assert found["changes"]["evidence"].startswith("remote_ttl: the running server has other")
    for each in (done, changed, command(environ, "doctor", "--timeout=1")):
        assert SECRET not in each.output + each.errors


COMMANDS = (
    ["config"],
    ["config", "--json", f"--model_id={MODEL}", "--lmcache", "chunk_size=64"],
    ["config", "--explain", "chunk_size"],
    ["doctor", "--timeout=1"],
    ["doctor", "--timeout=1", f"--model_id={MODEL}", "--lmcache", "chunk_size=64"],
)


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_memory_and_imports(server: StandIn, environ: dict[str, str], arguments: list[str]) -> None:
    done = command(environ, *arguments)
    assert done.code in (0, 1), done.errors
    assert HEAVY & set(done.modules) == set()
    assert done.peak < 100 * MIB, f"{done.peak / MIB:.0f} MiB"


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_small_container(server: StandIn, environ: dict[str, str], arguments: list[str]) -> None:
    with limited(128 * MIB) as prefix:
        done = command(environ, *arguments, prefix=prefix)
    assert done.code in (0, 1), done.errors


@pytest.mark.parametrize("name", ["config", "doctor"])
def test_the_kernel_ends_the_command_before_the_server(environ: dict[str, str], name: str) -> None:
    assert command(environ, name, "--help").score == 1000
    assert command(environ, "bench", "--help").score < 1000


# The server is the larger one: without the score the kernel would end it.
_SERVER = "import sys; held = b'x' * (120 << 20); print('ready', flush=True); sys.stdin.readline()"
_COMMAND = """\
from kserve_lmcache.cli import running
running.go_first()
held = [b"x" * (1 << 20) for _ in range(150)]
"""


def test_the_kernel_does_so() -> None:
    with limited(200 * MIB) as prefix:
        server = subprocess.Popen(
            [*prefix, sys.executable, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            ended = subprocess.run([*prefix, sys.executable, "-c", _COMMAND], capture_output=True)
            assert ended.returncode != 0
            assert server.poll() is None
        finally:
            server.kill()
            server.communicate()


def test_a_score_that_cannot_be_raised_is_left(tmp_path: Path) -> None:
    running.go_first(tmp_path / "nowhere" / "oom_score_adj")


@pytest.mark.parametrize(
    ("free", "imports_vllm", "servers", "refused"),
    [
        (1536, True, 1, "--engine needs 2048 MiB, and 1536 MiB are free (the test's limit): "),
        (-1, True, 1, "--engine needs 2048 MiB, and 0 MiB are free"),
        (2560, True, 1, ""),
        (None, True, 1, ""),
        (512, True, 0, ""),
        (512, False, 1, ""),
        (90, False, 1, "this command needs 100 MiB, and 90 MiB are free"),
    ],
)
def test_a_command_that_could_end_a_server_is_refused(
    free: int | None,
    imports_vllm: bool,
    servers: int,
    refused: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit = None if free is None else Limit(free * MIB, "the test's limit")
    live = [RunningServer(1, 8080, "0", Shown({}))] * servers
    monkeypatch.setattr(running, "free_memory", lambda: limit)
    monkeypatch.setattr(running, "resident_memory", lambda: 0)
    monkeypatch.setattr(running.server_file, "running", lambda environ: live)
    if not refused:
        running.refuse_without_room({}, imports_vllm)
        return
    with pytest.raises(UsageError) as error:
        running.refuse_without_room({}, imports_vllm)
    assert str(error.value).startswith(refused)
    assert "the kernel could end the server that runs here" in str(error.value)
