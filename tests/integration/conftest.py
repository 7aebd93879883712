"""What several modules need: a Redis of their own, and the hash seed of every server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kserve_lmcache.config.stores import Remote
from tests.support.stores import Store, redis_process


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A Redis for the module."""
    with redis_process(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def remote(server: Store) -> Remote:
    """That Redis, emptied, as a tier's store."""
    server.client().flushall()
    return Remote(server.url, "test")


@pytest.fixture
def same_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal keys in every process."""
    monkeypatch.setenv("PYTHONHASHSEED", "0")
