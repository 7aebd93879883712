"""An engine beside a cache server: what is stored comes back, and is right whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cache_server import CacheServer, cache_server
from tests.support.simulated_engine import CHUNK, SimulatedEngine, continuation, simulated
from tests.support.waiting import until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CacheServer]:
    with cache_server(tmp_path_factory.mktemp("server"), chunk_size=CHUNK) as server:
        yield server


@pytest.fixture
def engine(server: CacheServer, tmp_path: Path) -> Iterator[SimulatedEngine]:
    with simulated(tmp_path, server=server) as engine:
        yield engine
        assert not engine.worker.wrong
        assert engine.errors() == {}


def prompt(number: int, chunks: int = 3, more: int = 5) -> list[int]:
    return [(number * 37 + place * 11) % 250 for place in range(chunks * CHUNK + more)]


def ask(engine: SimulatedEngine, name: str, tokens: list[int]) -> int:
    """The number of tokens that were loaded for a request, whose answer is right."""
    before = engine.hits
    assert engine.ask(name, tokens) == continuation(tokens, 4)
    return engine.hits - before


def test_what_is_stored_is_loaded(engine: SimulatedEngine) -> None:
    assert ask(engine, "first", prompt(1)) == 0
    engine.forget_local()
    assert until_loaded(engine, prompt(1)) == 3 * CHUNK


def until_loaded(engine: SimulatedEngine, tokens: list[int]) -> int:
    """A save becomes visible in the background."""
    loaded = []

    def again() -> bool:
        engine.forget_local()
        loaded.append(ask(engine, f"again {len(loaded)} {tokens[0]}", tokens))
        return loaded[-1] > 0

    until(again)
    return loaded[-1]
