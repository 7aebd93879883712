"""The configuration in force is the one that was written, and no secret is shown anywhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from kserve_lmcache.config.settings import SETTINGS
from tests.support.server import MODEL, Server, engine_environment, long_prompt, running
from tests.support.stores import Store, redis_server

PASSWORD = "hunter2-p@ss"
TOKEN = "t0ken-of-a-plugin"
FILE = """\
local_cpu: true
chunk_size: 256
max_local_cpu_size: 1.0
remote_url: "redis://:hunter2-p%40ss@127.0.0.1:{port}"
remote_serde: "naive"
remote_password_file: {password_file}
extra_config:
  plugin_token: {token}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with redis_server(tmp_path_factory.mktemp("redis"), password=PASSWORD) as store:
        yield store


@pytest.fixture(scope="module")
def environ(store: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The password in a URL, in a variable and in a file; a variable contradicts the file."""
    directory = tmp_path_factory.mktemp("configuration")
    (directory / "password").write_text(PASSWORD + "\n")
    file = directory / "lmcache.yaml"
    file.write_text(FILE.format(port=store.port, password_file=directory / "password", token=TOKEN))
    return engine_environment(
        LMCACHE_CONFIG_FILE=str(file),
        LMCACHE_CHUNK_SIZE="128",
        LMCACHE_REMOTE_PASSWORD=PASSWORD,
        LMCACHE_LOG_LEVEL="DEBUG",
    )


@pytest.fixture(scope="module")
def server(logs: Path, environ: dict[str, str]) -> Iterator[Server]:
    with running(logs / "configuration.log", environ=environ) as server:
        yield server


def command(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kserve_lmcache", *arguments],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_engine_uses_what_the_config_command_prints(
    server: Server, environ: dict[str, str]
) -> None:
    printed = command(environ, "config", "--json", f"--model_id={MODEL}", "--max-model-len=4096")
    assert printed.returncode == 0, printed.stderr
    values = json.loads(printed.stdout)["values"]
    assert values["chunk_size"] == {"value": 256, "source": f"{environ['LMCACHE_CONFIG_FILE']}:2"}
    (line,) = re.findall("LMCache uses (.*)", server.process.output())
    used = [re.fullmatch(r"(\w+) = (.*) \((.*)\)", value).groups() for value in line.split("; ")]  # type: ignore[union-attr]
    ours = {setting.name for setting in SETTINGS}
    assert {name for name, _, _ in used} == set(values) - ours
    for name, value, source in used:
        assert (value, source) == (str(values[name]["value"]), values[name]["source"])


def test_config_and_doctor_are_about_the_running_server(
    server: Server, environ: dict[str, str]
) -> None:
    printed = command(environ, "config", "--json")
    assert printed.returncode == 0, printed.stderr
    content = json.loads(printed.stdout)
    assert f"of the running server: pid {server.process.pid} " in content["notes"][-1]
    flags = ("--engine", f"--model_id={MODEL}", "--max-model-len=4096", "--drain-delay=0")
    of_flags = json.loads(command(environ, "config", "--json", *flags).stdout)
    assert content["values"] == of_flags["values"]
    report = command(environ, "doctor", "--json")
    assert report.returncode == 0, report.stdout
    found = {each["name"]: each for each in json.loads(report.stdout)["findings"]}
    assert f"running server: pid {server.process.pid}" in found["configuration"]["evidence"]
    assert found["remote round trip"]["status"] == "ok"
    assert "changes" not in found


def test_a_variable_that_loses_is_named(server: Server, environ: dict[str, str]) -> None:
    path = environ["LMCACHE_CONFIG_FILE"]
    log = server.process.output()
    assert log.count(f"LMCACHE_CHUNK_SIZE is not used: {path}:2 sets chunk_size") == 1


def test_the_doctor_looks_at_the_start(server: Server) -> None:
    log = server.process.output()
    assert "Check remote login: ok" in log
    assert "Check remote round trip: ok" in log
    assert "Check memory: ok" in log


def test_no_secret_is_shown_anywhere(server: Server, store: Store, environ: dict[str, str]) -> None:
    prompt = long_prompt("secret")
    server.chat(prompt)
    server.process.wait_until(lambda: store.client().dbsize() >= 4, seconds=10)
    shown = [
        httpx.get(f"{server.url}{path}", timeout=30).text
        for path in ("/metrics", "/v2", f"/v2/models/{server.name}", "/openai/v1/models", "/", "/x")
    ]
    body = {"model": server.name, "messages": [{"role": "user", "content": prompt * 9}]}
    shown.append(httpx.post(f"{server.openai_url}/chat/completions", json=body).text)
    for process in server.process.family():
        shown += process.cmdline()
    for arguments in (
        ["config"],
        ["config", "--json"],
        ["config", "--explain", "remote_url"],
        ["config", "--lmcache", "chunk_size=x", "remote_serde=x"],
        ["doctor"],
        ["doctor", "--json"],
    ):
        result = command(environ, *arguments)
        shown += [result.stdout, result.stderr]
    shown.append(server.process.output())
    text = "\n".join(shown)
    assert "***" in text
    for secret in (PASSWORD, "hunter2-p%40ss", "hunter2", TOKEN):
        assert secret not in text
