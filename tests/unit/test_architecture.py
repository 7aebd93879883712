"""The folders of the package: imports point one way, and nothing runs at import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.server import ROOT

PACKAGE = ROOT / "runtime" / "kserve_lmcache"


def test_imports_run_down_the_list_of_folders() -> None:
    """The contract in pyproject.toml, which `make lint` checks as well."""
    result = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout


def test_no_module_lies_loose_in_the_root() -> None:
    loose = {path.stem for path in PACKAGE.glob("*.py")}
    assert loose == {"__init__", "__main__", "errors", "logs", "redaction"}


@pytest.mark.parametrize("folder", [p.parent for p in PACKAGE.rglob("__init__.py")], ids=str)
def test_every_folder_says_what_belongs_there(folder: Path) -> None:
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    assert docstring
    assert len(docstring) > 20


@pytest.mark.parametrize(
    "modules",
    [
        "kserve_lmcache.cli.main, kserve_lmcache.engine.process",
        # A laptop without an engine measures a remote endpoint.
        "kserve_lmcache.cli.bench, kserve_lmcache.bench.pictures",
    ],
)
def test_importing_the_package_imports_neither_vllm_nor_torch(modules: str) -> None:
    probe = (
        f"import sys, {modules};"
        "print([name for name in ('vllm', 'torch', 'lmcache', 'kserve') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_files_stay_small() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path
