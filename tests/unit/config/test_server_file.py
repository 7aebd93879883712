"""What a live server leaves for other commands, and how they read it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kserve_lmcache.config import metrics_directory, server_file
from kserve_lmcache.config.configuration import Shown, Value
from kserve_lmcache.config.engine_shape import EngineShape
from kserve_lmcache.config.server_file import RunningServer
from tests.support.configuration import resolved

SHAPE = EngineShape("cpu", 1, 128, 23040, 512, 4)
SECRET = "hunter2-of-the-test"


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    values = {"chunk_size": Value(64, "file:1"), "extra_config": Value({"a": [1]}, "x")}
    shown = Shown(values, ["a note"])
    written = RunningServer(os.getpid(), 8080, "0.1.0", shown, SHAPE)
    environ = {metrics_directory.VARIABLE: str(tmp_path)}
    own = metrics_directory.make(environ)
    assert server_file.running({metrics_directory.VARIABLE: str(tmp_path)}) == []
    server_file.write(own, written)
    file = own / "server.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert {path.name for path in own.iterdir()} == {"lock", "server.json"}
    assert server_file.running({metrics_directory.VARIABLE: str(tmp_path)}) == [written]
    for damaged in ("", "[]", "{}", '{"pid": 1}', file.read_text()[:-9]):
        file.write_text(damaged)
        assert server_file.running({metrics_directory.VARIABLE: str(tmp_path)}) == []


def test_no_secret_is_in_it(tmp_path: Path) -> None:
    configuration = resolved(
        tmp_path,
        f"extra_config: {{plugin_token: {SECRET}}}\n",
        LMCACHE_REMOTE_URL=f"redis://:{SECRET}@h:1",
        LMCACHE_REMOTE_PASSWORD=SECRET,
    )
    server_file.write(tmp_path, RunningServer(1, 8080, "0", configuration.shown()))
    text = (tmp_path / "server.json").read_text()
    assert "redis://" in text
    assert SECRET not in text


@pytest.mark.parametrize(
    ("line", "flags"),
    [
        (["python3", "-m", "kserve_lmcache", "--offload=off", ""], ["--offload=off", ""]),
        (["python", "-I", "-m", "kserve_lmcache", "serve", "a"], ["a"]),
        (["python3", "-m", "kserve_lmcache.cli.command", "serve", "a"], ["a"]),
        (["/bin/python", "/usr/bin/kserve-lmcache", "--a=b"], ["--a=b"]),
        (["/usr/bin/kserve-lmcache"], []),
        (["sleep", "kserve_lmcache"], None),
        ([], None),
    ],
)
def test_the_flags_of_a_process(tmp_path: Path, line: list[str], flags: list[str] | None) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cmdline").write_text("".join(f"{word}\0" for word in line))
    assert server_file.flags_of(7, tmp_path) == flags
    assert server_file.flags_of(8, tmp_path) is None
