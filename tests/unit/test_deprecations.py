"""Tests fail where something is used that vLLM is about to remove, in every process of theirs."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest

from tests.support.deprecations import deprecations
from tests.support.server import engine_environment

OLD_MODULE = "`vllm.entrypoints.openai.api_server` is deprecated and will likely be unsupported"
OLD_FLAG = "--disable-cascade-attn is deprecated and has no effect"
WITHOUT_TASKS = "The 'supported_tasks' parameter was not provided to build_app"


def warn(message: str, category: type[Warning], module: str) -> None:
    """Warn as ``module`` does."""
    warnings.warn_explicit(message, category, "file.py", 1, module=module, registry={})


@pytest.mark.parametrize(
    ("message", "category"),
    [(OLD_MODULE, DeprecationWarning), (OLD_FLAG, UserWarning), ("gone soon", DeprecationWarning)],
)
@pytest.mark.parametrize("module", ["vllm.engine.arg_utils", "kserve_lmcache.compat.vllm"])
def test_a_warning_is_an_error_in_this_process(
    message: str, category: type[Warning], module: str
) -> None:
    with pytest.raises(category, match=r"deprecated|gone"):
        warn(message, category, module)


def test_other_warnings_of_vllms_modules_are_none() -> None:
    with pytest.warns(UserWarning, match="no GPU"):
        warn("no GPU", UserWarning, "vllm.platforms")


@pytest.mark.parametrize("message", [OLD_MODULE, WITHOUT_TASKS])
def test_a_warning_is_an_error_in_processes_of_tests(message: str) -> None:
    code = f"import warnings; warnings.warn({message!r}, DeprecationWarning, stacklevel=1)"
    result = subprocess.run(
        [sys.executable, "-c", code], env=engine_environment(), capture_output=True, text=True
    )
    assert result.returncode == 1
    assert f"DeprecationWarning: {message}" in result.stderr


def test_the_log_of_a_server_is_read() -> None:
    bad = [
        f"(EngineCore pid=7) WARNING 11-29 15:30:10 [arg_utils.py:12] {OLD_FLAG}",
        f"/venv/site-packages/vllm/engine/arg_utils.py:1953: UserWarning: {OLD_FLAG}",
    ]
    good = [
        "WARNING 11-29 15:30:10 [base.py:230] Initializing KVConnectorBase_V1.",
        "INFO 11-29 15:30:10 [model.py:1] The use of nothing is deprecated",
        "/venv/lib/python3.11/site-packages/torch/x.py:1: UserWarning: is deprecated",
        "/venv/lib/python3.11/site-packages/vllm/x.py:1: FutureWarning: of torch, deprecated",
        "127.0.0.1 - a prompt about deprecated things",
        "WARNING 11-29 15:30:10 [input_processor.py:157] vLLM has deprecated support for "
        "supporting different tokenizers for different LoRAs.",
    ]
    assert deprecations("\n".join([*good, *bad])) == bad
