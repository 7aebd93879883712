"""What the flags of a server need of the memory, and the server that cannot fit."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kserve_lmcache.cli.arguments import parse_arguments
from kserve_lmcache.config import completion
from kserve_lmcache.config.completion import complete
from kserve_lmcache.config.configuration import Configuration
from kserve_lmcache.config.engine_shape import EngineShape
from kserve_lmcache.config.memory_budget import GIB, Needs
from kserve_lmcache.config.resources import Limit, machine_memory
from kserve_lmcache.engine import arguments, memory, plan
from kserve_lmcache.engine.arguments import resolve_engine_arguments
from kserve_lmcache.engine.memory import needs_of
from kserve_lmcache.engine.plan import OffloadPlan, plan_offload, resolve_configuration
from kserve_lmcache.errors import ConfigurationError, UsageError
from kserve_lmcache.identity.weights import weights_bytes
from tests.support.limits import limited
from tests.support.server import MODEL, engine_environment

WEIGHTS = weights_bytes(MODEL)


def container(monkeypatch: pytest.MonkeyPatch, gib: float) -> None:
    """Let this process be in a container of so much memory."""
    for module in (arguments, completion, memory, plan):
        monkeypatch.setattr(module, "memory_limit", lambda: Limit(gib * GIB, "the test's limit"))


def planned(*argv: str, **environ: str) -> tuple[Namespace, OffloadPlan]:
    args = parse_arguments([f"--model_id={MODEL}", "--max-model-len=512", *argv])
    resolve_engine_arguments(args, environ)
    return args, plan_offload(args, resolve_configuration(args, environ), environ)[0]


def needs(*argv: str, device: str = "cpu", **environ: str) -> Needs:
    args = parse_arguments([f"--model_id={MODEL}", *argv])
    args.model, args.tensor_parallel_size = str(MODEL), args.tensor_parallel_size or 1
    return needs_of(args, device, environ)


def test_the_sizes_that_a_user_gives() -> None:
    assert needs("--kv-cache-memory-bytes=400M").kv_cache == 400 * 2**20
    assert needs(VLLM_CPU_KVCACHE_SPACE="3").kv_cache == 3 * GIB
    share = needs("--gpu-memory-utilization=0.5").kv_cache
    assert share == pytest.approx(machine_memory() / 2 - WEIGHTS - 0.8 * GIB, rel=0.001)
    assert needs().kv_cache == 0
    assert needs("--dtype=float32").weights == 2 * WEIGHTS
    assert (needs("--tensor-parallel-size=3").workers, needs().weights) == (3, WEIGHTS)
    assert needs("--data-parallel-size=2").engines == 2


def test_beside_an_accelerator_only_what_vllm_offloads_is_here() -> None:
    found = needs("--cpu-offload-gb=2", "--tensor-parallel-size=3", device="cuda")
    assert (found.weights, found.kv_cache, found.offloaded) == (0, 0, 6 * GIB)
    assert needs("--kv-offloading-size=5", device="cuda").offloaded == 5 * GIB


def test_the_example_of_the_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    container(monkeypatch, 5)
    args, offload = planned()
    found = needs_of(args, "cpu", {})
    tier = offload.configuration.get("max_local_cpu_size") * GIB
    assert sum(found.parts(tier).values()) == pytest.approx(4 * GIB, rel=0.001)


def test_what_cannot_fit_is_refused_with_the_other_problems(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    container(monkeypatch, 5)
    with pytest.raises(ConfigurationError) as caught:
        planned("--lmcache", "max_local_cpu_size=3", "chunk_size=100")
    chunk, sum_of_all = sorted(map(str, caught.value.problems), key=lambda text: "needs" in text)
    assert "chunk_size of 100" in chunk
    assert sum_of_all.startswith("the test's limit: the server needs ")
    assert "local tier 3.00" in sum_of_all


@pytest.mark.parametrize("offload", ["on", "off"])
def test_what_cannot_fit_without_a_tier_is_refused_with_and_without_offloading(
    monkeypatch: pytest.MonkeyPatch, offload: str
) -> None:
    container(monkeypatch, 5)
    with pytest.raises(UsageError, match=r"needs .* vLLM's KV cache 4\.00") as caught:
        planned(f"--kv-cache-memory-bytes={4 * GIB}", f"--offload={offload}")
    assert "local tier" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_little_left_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    container(monkeypatch, 5)
    monkeypatch.setattr(logging.getLogger("kserve_lmcache"), "propagate", True)
    planned("--lmcache", "max_local_cpu_size=1.5")
    assert "Less than 20% are left" in caplog.text
    caplog.clear()
    planned()
    assert "are left" not in caplog.text


SHAPE = EngineShape("cpu", 1, 128, 23040, 512, 4)


def from_a_hub(monkeypatch: pytest.MonkeyPatch, *argv: str) -> tuple[Namespace, Configuration, Any]:
    """The defaults of a model of a hub, before its weights are known, and an engine's sizes."""
    container(monkeypatch, 5)
    args = parse_arguments(["--model_id=org/model", *argv])
    environ: dict[str, str] = {}
    resolve_engine_arguments(args, environ)
    configuration = resolve_configuration(args, environ)
    complete(configuration, SHAPE, needs_of(args, "cpu", environ))
    assert configuration.problems == []
    sizes = SimpleNamespace(kv_cache_memory_bytes=args.kv_cache_memory_bytes)
    monkeypatch.setattr(plan, "model_path", lambda config: MODEL)
    return args, configuration, SimpleNamespace(cache_config=sizes)


def test_the_defaults_of_a_hubs_model_are_made_anew_when_its_weights_are_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args, configuration, engine = from_a_hub(monkeypatch, "--dtype=float32")
    before = args.kv_cache_memory_bytes, configuration.get("max_local_cpu_size")
    found = plan._sized_anew(args, engine, configuration, SHAPE, {})
    after = args.kv_cache_memory_bytes, configuration.get("max_local_cpu_size")
    assert engine.cache_config.kv_cache_memory_bytes == after[0] < before[0]
    assert after[1] < before[1]
    assert found is not None
    assert found.weights == 2 * WEIGHTS
    assert sum(found.parts(after[1] * GIB).values()) == pytest.approx(4 * GIB, rel=0.001)


def test_the_sizes_that_a_user_gave_a_hubs_model_stay_or_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = ("--kv-cache-memory-bytes=1G", "--lmcache", "max_local_cpu_size=1.5")
    args, configuration, engine = from_a_hub(monkeypatch, *sizes)
    plan._sized_anew(args, engine, configuration, SHAPE, {})
    assert (args.kv_cache_memory_bytes, configuration.get("max_local_cpu_size")) == (GIB, 1.5)
    monkeypatch.setattr(memory, "weights_bytes", lambda model, dtype: GIB)
    with pytest.raises(ConfigurationError, match=r"weights 1\.00"):
        plan._sized_anew(args, engine, configuration, SHAPE, {})


def _under_a_real_limit(tmp_path: Path, gib: float, *argv: str) -> tuple[int, str]:
    """The exit code, and what is left for ``kubectl describe pod``."""
    told = tmp_path / "termination-log"
    told.touch()
    environ = {**engine_environment(TERMINATION_LOG=str(told)), "PYTHONHASHSEED": "0"}
    environ |= {"PYTHONPATH": os.pathsep.join(sys.path)}
    with limited(int(gib * GIB)) as prefix:
        command = [*prefix, sys.executable, "-m", "kserve_lmcache", f"--model_id={MODEL}", *argv]
        done = subprocess.run(command, capture_output=True, text=True, env=environ)
    return done.returncode, told.read_text()


def test_a_container_that_cannot_hold_the_processes(tmp_path: Path) -> None:
    code, told = _under_a_real_limit(tmp_path, 0.5)  # less than the import of vLLM takes
    assert code == 2
    assert "the server needs 2.2 GiB (API process 0.75, " in told
    assert "more than 0.5 GiB. Raise the memory limit to 2.8 GiB." in told


def test_a_container_that_cannot_hold_the_cache(tmp_path: Path) -> None:
    code, told = _under_a_real_limit(tmp_path, 4, f"--kv-cache-memory-bytes={3 * GIB}")
    assert code == 2
    assert "vLLM's KV cache 3.00" in told
