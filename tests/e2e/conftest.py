"""What several tests share: a store for each module, and one server that caches nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.containers import Engine, Images, build, running_engine
from tests.support.models import first_layers
from tests.support.server import MODEL, Server, engine_environment, running
from tests.support.stores import Store, redis_server


@pytest.fixture(scope="session", autouse=True)
def _demo_model() -> None:
    assert (MODEL / "config.json").exists(), f"{MODEL} is missing: make test writes it"


@pytest.fixture(scope="package")
def cut_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's first three layers."""
    return first_layers(tmp_path_factory.mktemp("models") / "cut", 3)


@pytest.fixture(scope="package")
def reference(cut_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of :func:`cut_model` in float32 that computes every prompt, on one core."""
    core = min(os.sched_getaffinity(0))
    with running(
        tmp_path_factory.mktemp("logs") / "reference.log",
        "--dtype=float32",
        "--offload=off",
        "--no-enable-prefix-caching",
        environ=engine_environment(VLLM_CPU_OMP_THREADS_BIND=str(core)),
        model=(f"--model_id={cut_model}",),
    ) as server:
        yield server


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def redis_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with redis_server(tmp_path_factory.mktemp("redis")) as store:
        yield store


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A container engine: the one that answers, else one of the tests' own."""
    with running_engine(tmp_path_factory.mktemp("engine")) as engine:
        yield engine


@pytest.fixture(scope="session")
def container_images(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    """The image of the Dockerfile, built once."""
    with build(engine, tmp_path_factory.mktemp("images")) as images:
        yield images
