from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.packaging.manifests import ROOT
from tests.packaging.tools import run

ENTRYPOINT = ROOT / "entrypoint.sh"
MULTINODE = ROOT / "multinode.sh"
VLLM = ROOT / "vllm.sh"
IN_PODS = sorted((ROOT / "servingruntime").rglob("*.sh"))


@pytest.mark.parametrize(
    "script", [ENTRYPOINT, MULTINODE, VLLM, *IN_PODS], ids=lambda path: path.name
)
def test_shellcheck_is_content(script: Path) -> None:
    assert run("shellcheck", "--enable=quote-safe-variables", str(script)) == ""


def test_many_nodes_have_the_entry_points_environment() -> None:
    def exported(script: Path) -> set[str]:
        lines = (line.strip() for line in script.read_text().splitlines())
        return {line for line in lines if line.startswith("export ") and ":-" in line}

    assert exported(ENTRYPOINT) == exported(MULTINODE)


def test_shellcheck_finds_a_planted_fault(tmp_path: Path) -> None:
    faulty = tmp_path / "entrypoint.sh"
    faulty.write_text("#!/bin/sh\npython3 -m server $@\n")
    assert "SC2068" in run("shellcheck", str(faulty))


each_script = pytest.mark.parametrize("script", [ENTRYPOINT, VLLM], ids=lambda path: path.name)


@each_script
def test_last_command_replaces_the_shell_and_keeps_arguments_whole(script: Path) -> None:
    lines = [line.strip() for line in script.read_text().splitlines() if line.strip()]
    # Without exec the shell is process 1 and SIGTERM never reaches the server.
    assert lines[-1].startswith("exec ")
    assert lines[-1].endswith(' "$@"')


@each_script
def test_script_is_executable_and_fails_on_errors(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert "set -eu" in script.read_text().splitlines()
