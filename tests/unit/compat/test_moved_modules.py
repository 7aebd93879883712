"""The old names of vLLM's modules work, and KServe has its OpenAI routes by them."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from kserve_lmcache.compat import moved_modules
from tests.support.server import ROOT

ROUTES = {
    "/openai/v1/chat/completions",
    "/openai/v1/completions",
    "/openai/v1/embeddings",
    "/openai/v1/models",
    "/openai/v1/models/{model_name}",
    "/openai/v1/rerank",
}
# KServe's own registration, as KServe's server does it. KServe imports what it can.
PROBE = """
import json, sys
import kserve_lmcache
if sys.argv[1] == "without":
    sys.meta_path[:] = [
        finder for finder in sys.meta_path if type(finder).__module__ != "{module}"
    ]
argv, sys.argv = sys.argv, sys.argv[:1]
from fastapi import FastAPI
found, reason = [], ""
try:
    from kserve.protocol.rest.openai.dataplane import OpenAIDataPlane
    from kserve.protocol.rest.openai.endpoints import register_openai_endpoints
    from kserve.model_repository import ModelRepository
    app = FastAPI()
    register_openai_endpoints(app, OpenAIDataPlane(ModelRepository()))
    found = [route.path for route in app.routes if route.path.startswith("/openai/")]
except ImportError as error:
    reason = str(error)
print(json.dumps([sorted(set(found)), reason]))
"""


def registered(finder: str) -> tuple[set[str], str]:
    """The OpenAI routes that KServe registers in a new process, and why it registers none."""
    result = subprocess.run(
        [sys.executable, "-c", PROBE.format(module=moved_modules.__name__), finder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found, reason = json.loads(result.stdout.splitlines()[-1])
    return set(found), reason


def is_gone(name: str) -> bool:
    """Whether the installed vLLM has no file for a module."""
    parent, _, _ = name.rpartition(".")
    if parent in moved_modules._MOVED and is_gone(parent):
        return True
    return PathFinder.find_spec(name, importlib.import_module(parent).__path__) is None


GONE = sorted(name for name in moved_modules._MOVED if is_gone(name))


def test_kserve_has_its_openai_routes() -> None:
    assert registered("with") == (ROUTES, "")


def test_without_the_old_names_kserve_has_none() -> None:
    found, reason = registered("without")
    if GONE:
        assert found == set()
        assert any(name in reason for name in GONE)
    else:
        assert found == ROUTES


@pytest.mark.parametrize("name", sorted(moved_modules._MOVED))
def test_an_old_name_has_what_the_new_ones_have(name: str) -> None:
    module = importlib.import_module(name)
    if name not in GONE:
        assert module.__file__ is not None, "vLLM's own module is taken"
        return
    for content in map(importlib.import_module, moved_modules._MOVED[name]):
        public = {key for key in vars(content) if not key.startswith("_")}
        assert public
        assert public <= set(vars(module))


def test_the_finder_comes_after_pythons_own_and_once() -> None:
    before = list(sys.meta_path)
    moved_modules.install()
    assert sys.meta_path == before
    kinds = [type(finder) for finder in sys.meta_path]
    assert kinds.count(moved_modules._MovedModules) == 1
    assert sys.meta_path.index(PathFinder) < kinds.index(moved_modules._MovedModules)


def test_other_names_are_not_found() -> None:
    assert moved_modules._MovedModules().find_spec("vllm.entrypoints.nothing", None) is None
    with pytest.raises(ModuleNotFoundError, match="nothing"):
        importlib.import_module("vllm.entrypoints.openai.nothing")


def test_a_module_that_exists_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(moved_modules._MOVED, "old_and_there", ("json",))
    (tmp_path / "old_and_there.py").write_text("mark = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("old_and_there")
    monkeypatch.delitem(sys.modules, "old_and_there")
    assert module.mark == 1
    assert not hasattr(module, "loads")


def test_a_module_that_has_moved_once_more_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(moved_modules._MOVED, "old_and_gone", ("json", "vllm.moved_once_more"))
    with pytest.raises(ImportError, match=r"vllm\.moved_once_more"):
        importlib.import_module("old_and_gone")
    assert "old_and_gone" not in sys.modules
