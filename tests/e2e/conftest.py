"""Servers that several tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import MODEL
from tests.support.stores import Store, redis_server


@pytest.fixture(scope="session", autouse=True)
def _demo_model() -> None:
    assert (MODEL / "config.json").exists(), f"{MODEL} is missing: make test writes it"


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def redis_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with redis_server(tmp_path_factory.mktemp("redis")) as store:
        yield store
