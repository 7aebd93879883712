"""What ``make`` would run, without running it."""

from __future__ import annotations

import os
import subprocess
import sys

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
