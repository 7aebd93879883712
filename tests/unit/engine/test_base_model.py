"""Our base class and KServe's ``VLLMModel`` are alike in every member that is used."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kserve_lmcache.cli.arguments import parse_arguments
from kserve_lmcache.engine import base_model
from kserve_lmcache.engine.kserve_model import VLLMModel

REQUEST = ["self", "request", "raw_request", "context"]
# The members of huggingfaceserver.vllm.vllm_model.VLLMModel (KServe 0.21) that are used.
METHODS = {
    "__init__": ["self", "model_name", "args", "request_logger"],
    "load": ["self"],
    "start": ["self"],
    "stop_engine": ["self"],
    "create_completion": REQUEST,
    "create_chat_completion": REQUEST,
    "create_embedding": REQUEST,
    "create_rerank": REQUEST,
}
ATTRIBUTES = (
    "openai_serving_models",
    "openai_serving_completion",
    "openai_serving_chat",
    "openai_serving_embedding",
    "serving_reranking",
)


def bases() -> list[type[Any]]:
    """Ours, and KServe's where its package is on the path (in its image, or from a checkout)."""
    found: list[type[Any]] = [VLLMModel]
    if importlib.util.find_spec("huggingfaceserver"):
        module = importlib.import_module("huggingfaceserver.vllm.vllm_model")
        found.append(module.VLLMModel)
    return found


@pytest.mark.parametrize("base", bases(), ids=lambda base: base.__module__)
def test_has_the_members_that_are_used(base: type[Any]) -> None:
    for name, parameters in METHODS.items():
        assert list(inspect.signature(getattr(base, name)).parameters) == parameters, name
    for name in ATTRIBUTES:
        assert getattr(base, name) is None
    assert [parent.__name__ for parent in base.__bases__] == [
        "OpenAIEncoderModel",
        "OpenAIGenerativeModel",
    ]


MOCK_HUGGINGFACESERVER = """\
class VLLMModel:
    pass
"""
PROBE = (
    "from kserve_lmcache.engine.base_model import choose_base as c; b, r = c(); "
    "print(b.__module__, r)"
)


def test_kserves_own_is_taken_where_it_is_installed(tmp_path: Path) -> None:
    package = tmp_path / "huggingfaceserver" / "vllm"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "vllm_model.py").write_text(MOCK_HUGGINGFACESERVER)
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {PROBE}"],
        capture_output=True,
        text=True,
        check=True,
    )
    expected = "huggingfaceserver.vllm.vllm_model KServe's huggingfaceserver is installed"
    assert result.stdout.strip() == expected


def test_ours_is_taken_elsewhere_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    # The module itself: importing it would not look at its packages again.
    monkeypatch.setitem(sys.modules, "huggingfaceserver.vllm.vllm_model", None)
    base, reason = base_model.choose_base()
    assert base is VLLMModel
    assert "huggingfaceserver cannot be used here" in reason


def test_the_grpc_port_is_kserves() -> None:
    """VLLM 0.32 has a flag of the same name, and refuses it without a frontend of its own."""
    for flags in ([], ["--grpc_port=8085"], ["--grpc-port=8085"]):
        args = parse_arguments(["--model_id=anything", *flags])
        assert VLLMModel("anything", args).args.grpc_port == (8085 if flags else 8081)
