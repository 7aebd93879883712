"""The names of vLLM that :mod:`kserve_lmcache.compat.vllm` stands for exist where it looks."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from packaging.version import Version
from vllm.config import ParallelConfig
from vllm.utils.ompmultiprocessing import OMPProcessManager
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.core import EngineCoreProc

from kserve_lmcache.compat import vllm
from tests.support.server import MODEL

MIB = 2**20


@pytest.mark.parametrize("name", sorted(vllm._MODULES))
def test_every_name_exists(name: str) -> None:
    assert getattr(vllm, name) is not None


def test_other_names_are_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = vllm.no_such_name


def test_the_application_takes_what_it_is_given() -> None:
    build = vllm._first_module(vllm._APP).build_app
    first, second, *_ = inspect.signature(build).parameters
    assert (first, second) == ("args", "supported_tasks")
    first, second, third, fourth, *_ = inspect.signature(vllm.init_app_state).parameters
    assert (first, second, third, fourth) == ("engine_client", "state", "args", "supported_tasks")


def test_exceptions_are_those_that_there_are() -> None:
    (found,) = vllm.exceptions("VLLMValidationError", "NoSuchError")
    assert issubclass(found, Exception)
    assert found.__name__ == "VLLMValidationError"


def test_engines_of_a_server_are_numbered() -> None:
    """VLLM sets the rank to 0 in each engine of a model that is no mixture of experts."""
    config: Any = SimpleNamespace(parallel_config=ParallelConfig())
    assert vllm.engine_number(config) == 0
    config.parallel_config.data_parallel_index = 3
    assert config.parallel_config.data_parallel_rank == 0
    assert vllm.engine_number(config) == 3
    source = inspect.getsource(EngineCoreProc.run_engine_core)
    assert "parallel_config.data_parallel_index = dp_rank" in source
    # VLLM's own publisher has the same number.
    source = inspect.getsource(Scheduler.__init__)
    made = source.index("EventPublisherFactory.create(")
    assert "self.parallel_config.data_parallel_index" in source[made : made + 150]


LOGGING = """
import argparse, logging, os, sys
os.environ["VLLM_LOGGING_LEVEL"] = "WARNING"
from vllm.engine.arg_utils import AsyncEngineArgs
from kserve_lmcache.compat.vllm import configure_logging
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
args = argparse.Namespace()
configure_logging(args)
ours = logging.getLogger("vllm").handlers = [logging.NullHandler()]
AsyncEngineArgs(model=sys.argv[1], **vars(args)).create_engine_config()
print("kept" if logging.getLogger("vllm").handlers is ours else "configured again")
"""


def test_vllm_does_not_configure_its_logging_again() -> None:
    result = subprocess.run(
        [sys.executable, "-c", LOGGING, str(MODEL)], capture_output=True, text=True
    )
    assert result.stdout.endswith("kept\n"), result.stderr[-2000:]


def test_the_attention_kernel_of_a_cpu_has_a_name() -> None:
    assert vllm.cpu_attention_kernel(torch.bfloat16, 128, 64, "auto")


def test_the_release_is_a_version() -> None:
    assert Version(vllm.release()).release >= (0, 24)


def test_the_newest_module_that_exists_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("newer")
    monkeypatch.setitem(sys.modules, "newer", module)
    assert vllm._first_module(("newest", "newer", "json")) is module
    assert vllm._first_module(("newest.inner", "json")).__name__ == "json"


def test_a_module_that_lacks_a_dependency_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "incomplete.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        vllm._first_module(("incomplete", "json"))


def test_the_attention_that_is_asked_for_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = SimpleNamespace(name="TRITON_ATTN")
    config: Any = SimpleNamespace(attention_config=SimpleNamespace(backend=backend))
    monkeypatch.setenv("VLLM_KV_CACHE_LAYOUT", "HND")
    assert vllm.attention_choice(config) == ("TRITON_ATTN", "HND")
    monkeypatch.delenv("VLLM_KV_CACHE_LAYOUT")
    config.attention_config.backend = None
    assert vllm.attention_choice(config) == ("", "")


def test_the_attention_of_a_workers_layers_is_read() -> None:
    """Every layer of attention has ``get_attn_backend``, others have not."""
    layers = {"a": layer_with("CPU_ATTN"), "b": object(), "c": layer_with("CPU_ATTN")}
    context = SimpleNamespace(static_forward_context=layers)
    config: Any = SimpleNamespace(compilation_config=context)
    assert vllm.attention_backends(config) == ["CPU_ATTN"]
    layers["d"] = layer_with("CPU_MLA")
    assert vllm.attention_backends(config) == ["CPU_ATTN", "CPU_MLA"]


def test_vllms_layers_and_configuration_have_what_is_read() -> None:
    attention = importlib.import_module("vllm.model_executor.layers.attention")
    assert callable(attention.Attention.get_attn_backend)
    config = importlib.import_module("vllm.config")
    names = {field.name for field in dataclasses.fields(config.CompilationConfig)}
    assert "static_forward_context" in names
    assert "backend" in {field.name for field in dataclasses.fields(config.AttentionConfig)}


def layer_with(name: str) -> Any:
    backend = SimpleNamespace(get_name=lambda: name)
    return SimpleNamespace(get_attn_backend=lambda: backend)


@pytest.mark.parametrize("places", ["nobind", "0"])
def test_vllm_leaves_the_threads_of_its_workers_alone_by_a_word(
    monkeypatch: pytest.MonkeyPatch, places: str
) -> None:
    """``nobind``, which ``engine/arguments.py`` sets under a quota."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", places)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    parallel = SimpleNamespace(
        local_world_size=1, data_parallel_rank_local=None, _api_process_count=1
    )
    config: Any = SimpleNamespace(parallel_config=parallel, kv_transfer_config=None)
    with OMPProcessManager(config).configure_omp_envs(rank=0, local_rank=0):
        names = ("OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
        bound = any(name in os.environ for name in names)
        assert (bound, os.environ["OMP_NUM_THREADS"]) == (
            (False, "7") if places == "nobind" else (True, "1")
        )


def test_the_largest_queue_fits_into_the_least_shared_memory() -> None:
    from vllm import envs
    from vllm.distributed.device_communicators import shm_broadcast

    least = vllm.least_shared_memory({})
    parameters = inspect.signature(shm_broadcast.MessageQueue).parameters
    parts = parameters["max_chunks"].default
    largest = max(parameters["max_chunk_bytes"].default, envs.VLLM_MQ_MAX_CHUNK_BYTES_MB * MIB)
    if hasattr(shm_broadcast, "check_shm_free_space"):
        assert parts * largest < least < parts * largest + 2 * MIB
        more = vllm.least_shared_memory({"VLLM_MQ_MAX_CHUNK_BYTES_MB": "32"})
        assert more - least == parts * 8 * MIB
    else:
        assert least == 32 * MIB
