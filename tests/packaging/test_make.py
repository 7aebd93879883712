"""What ``make`` would run, without running it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.manifests import ROOT


def recipe(*arguments: str) -> str:
    """The commands of ``make serve`` for a model of the user."""
    environ = {"PATH": os.environ["PATH"]}
    command = ["make", "--dry-run", "serve", "MODEL=org/model", f"VENV={sys.prefix}", *arguments]
    result = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return " ".join(result.stdout.replace("\\\n", " ").split())


@pytest.mark.parametrize(
    ("argument", "directory"),
    [
        ("", ".cache/compiled"),
        ("COMPILE_CACHE=/var/of/mine", "/var/of/mine"),
        ("COMPILE_CACHE=", ""),
    ],
)
def test_make_serve_keeps_compiled_code(argument: str, directory: str) -> None:
    assert f"KSERVE_LMCACHE_COMPILE_CACHE_DIR='{directory}' " in recipe(*filter(None, [argument]))


@pytest.mark.parametrize(("engine_answers", "wanted"), [(True, False), (False, True)])
def test_a_container_engine_is_installed_where_none_answers(
    engine_answers: bool, wanted: bool, tmp_path: Path
) -> None:
    asked = tmp_path / "asked"
    commands = {"docker": f"exit {int(not engine_answers)}", "dpkg": f'echo "$@" > {asked}'}
    for name, script in commands.items():
        command = tmp_path / name
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(0o755)
    environment = tmp_path / "venv"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").touch()
    result = subprocess.run(
        ["make", f"VENV={environment}", f"{environment}/.debian"],
        cwd=ROOT,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    packages = asked.read_text().split()
    assert "chromium" in packages
    assert ("docker.io" in packages) is wanted
