"""What is left for ``kubectl describe pod``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kserve_lmcache.server import termination_log
from tests.support.server import ROOT

PROBE = (
    "from kserve_lmcache.server.termination_log import is_of_this_process as its; print(int(its()))"
)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "log"
    path.touch()
    monkeypatch.setenv(termination_log.VARIABLE, str(path))
    return path


def test_a_long_reason_keeps_its_beginning(log: Path) -> None:
    termination_log.write("ö" * 10_000)
    text = log.read_text()
    assert len(log.read_bytes()) <= termination_log.LARGEST
    assert text.startswith("ö" * 2000)
    assert text.endswith("(the container's log has the rest)")


def test_a_reason_that_fits_is_whole(log: Path) -> None:
    termination_log.write("a" * termination_log.LARGEST)
    assert log.read_text() == "a" * termination_log.LARGEST


def test_no_file_is_made_and_none_must_be_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (tmp_path / "absent", tmp_path):
        monkeypatch.setenv(termination_log.VARIABLE, str(path))
        termination_log.write("reason")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.cluster
@pytest.mark.parametrize(("prefix", "expected"), [((), "0"), (("unshare", "--pid", "--fork"), "1")])
def test_a_command_beside_the_server_leaves_no_message(
    prefix: tuple[str, ...], expected: str
) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "TERMINATION_LOG"}
    environ["PYTHONPATH"] = str(ROOT / "runtime")
    command = [*prefix, sys.executable, "-c", PROBE]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
    assert done.stdout.strip() == expected
