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


# Modules of which vLLM has moved names between 0.24 and 0.32.
MOVED = ("vllm.entrypoints", "vllm.exceptions")
# Their private names come from compat alone as well.
PROJECTS = ("vllm", "lmcache", "kserve", "huggingfaceserver")


def test_private_and_moved_names_are_imported_in_compat_alone() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}: {module}.{name}"
        for path in PACKAGE.rglob("*.py")
        if PACKAGE / "compat" not in path.parents
        for module, name in imports(path.read_text())
        if belongs_in_compat(f"{module}.{name}")
    ]
    assert found == []


def imports(source: str) -> list[tuple[str, str]]:
    """Module and name of every import, those within functions included."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.module or "", alias.name) for alias in node.names]
    return found


def belongs_in_compat(name: str) -> bool:
    parts = name.split(".")
    is_private = any(part.startswith("_") and part != "__version__" for part in parts)
    return parts[0] in PROJECTS and (is_private or name.startswith(tuple(f"{m}." for m in MOVED)))


@pytest.mark.parametrize(
    ("source", "refused"),
    [
        ("from vllm.v1.attention.backends.cpu_attn import _get_attn_isa", True),
        ("def f():\n    from kserve.protocol.rest.server import _RefreshingServer", True),
        ("import vllm.exceptions", True),
        ("from vllm.entrypoints.openai.cli_args import make_arg_parser", True),
        ("from vllm.config import VllmConfig", False),
        ("from kserve_lmcache.compat.vllm import make_arg_parser", False),
        ("from os import _exit", False),
    ],
)
def test_the_check_of_imports_finds_what_belongs_in_compat(source: str, refused: bool) -> None:
    ((module, name),) = imports(source)
    assert belongs_in_compat(f"{module}.{name}") is refused


@pytest.mark.parametrize("folder", [p.parent for p in PACKAGE.rglob("__init__.py")], ids=str)
def test_every_folder_says_what_belongs_there(folder: Path) -> None:
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    assert docstring
    assert len(docstring) > 20


@pytest.mark.parametrize(
    "modules",
    [
        "kserve_lmcache.cli.main, kserve_lmcache.engine.process",
        "kserve_lmcache.compat.vllm, kserve_lmcache.compat.kserve",
        # A laptop without an engine measures a remote endpoint.
        "kserve_lmcache.cli.bench, kserve_lmcache.bench.report",
        # These run beside a server, in its memory.
        "kserve_lmcache.cli.config, kserve_lmcache.cli.doctor",
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
