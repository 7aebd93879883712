"""An engine beside a cache server: what is stored comes back, and is right whatever happens."""

from __future__ import annotations

import mmap
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from kserve_lmcache.cache_server.announcement import announced
from kserve_lmcache.cache_server.messages import Hello, Objects, Row, Welcome
from kserve_lmcache.cache_server.rpc import Client
from kserve_lmcache.config.local_tier import SHARED_MEMORY
from kserve_lmcache.connector.multiprocess.worker_cache import MultiprocessWorkerCache
from kserve_lmcache.metrics.table import metric
from tests.support.cache_server import CacheServer, cache_server
from tests.support.cache_server_engine import CHUNKS, Asked, caches, connected, prompt, stored
from tests.support.processes import send
from tests.support.simulated_engine import CHUNK, SimulatedEngine, continuation, simulated
from tests.support.waiting import until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CacheServer]:
    with cache_server(tmp_path_factory.mktemp("server"), chunk_size=CHUNK) as server:
        yield server


@pytest.fixture(scope="module")
def shared(
    server: CacheServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimulatedEngine]:
    with simulated(tmp_path_factory.mktemp("engine"), server=server) as engine:
        yield engine


@pytest.fixture
def engine(shared: SimulatedEngine) -> Iterator[SimulatedEngine]:
    connected(shared)
    shared.forget_local()
    yield shared
    assert not shared.worker.wrong
    assert shared.errors() == {}


def test_a_whole_prefix_is_loaded(engine: SimulatedEngine) -> None:
    tokens = stored(engine, 1)
    assert Asked(engine)([*tokens, 7, 8, 9]) == CHUNKS * CHUNK


def test_a_prompt_that_is_all_there_has_its_last_token_computed(engine: SimulatedEngine) -> None:
    tokens = stored(engine, 2)
    assert Asked(engine)(tokens[: CHUNKS * CHUNK]) == CHUNKS * CHUNK - 1


def test_what_vllm_has_is_not_loaded(engine: SimulatedEngine) -> None:
    tokens, loads = stored(engine, 3), []
    engine.forget_local()
    engine.ask("beginning", tokens[: 3 * CHUNK + 20])
    before = engine.hits
    assert engine.ask("rest", tokens) == continuation(tokens, 4)
    loads.append(engine.hits - before)
    # VLLM has whole blocks of its own: a chunk and a half of a block beyond.
    assert loads == [CHUNKS * CHUNK - (3 * CHUNK + 16)]


def test_another_tenant_has_another_cache(engine: SimulatedEngine) -> None:
    tokens = stored(engine, 4, cache_salt="one")
    ask = Asked(engine)
    assert ask(tokens, cache_salt="other") == 0
    assert ask(tokens) == 0
    assert ask(tokens, cache_salt="one") == CHUNKS * CHUNK


def objects(engine: SimulatedEngine, tokens: list[int]) -> tuple[mmap.mmap, list[int], int]:
    """The server's memory, and where the prompt's objects are in it."""
    scheduler, worker = caches(engine)
    connection = worker._session.connection
    assert connection is not None
    assert connection.memory is not None
    tracked = scheduler._tracked(engine.request("digests", tokens))
    digests = tracked.digests.first(CHUNKS, tokens)
    scheduler.forget("digests", hidden=True)
    asked = Objects(worker._row, digests)
    offsets = connection.client.call("read", asked, 1).offsets
    connection.client.call("release", asked, 1)
    return connection.memory, offsets, worker._row.size


def corrupt_chunks() -> float:
    return float(metric("chunks_corrupt_total", tier="local_cpu").value())


@pytest.mark.parametrize("place", ["header", "first byte", "last byte", "end"])
def test_a_damaged_chunk_is_computed_and_stored_again(engine: SimulatedEngine, place: str) -> None:
    tokens = stored(engine, 10 + len(place))
    memory, offsets, size = objects(engine, tokens)
    at = {"header": 0, "first byte": size // 2, "last byte": size - 100, "end": size - 1}[place]
    memory[offsets[2] + at] ^= 1
    found = corrupt_chunks()
    assert Asked(engine)(tokens) < CHUNKS * CHUNK
    assert corrupt_chunks() == found + 1
    until(lambda: Asked(engine)(tokens) == CHUNKS * CHUNK)


def test_exchanged_chunks_are_computed(engine: SimulatedEngine) -> None:
    tokens = stored(engine, 30)
    memory, offsets, size = objects(engine, tokens)
    one, other = (slice(offsets[number], offsets[number] + size) for number in (1, 4))
    memory[one], memory[other] = bytes(memory[other]), bytes(memory[one])
    assert Asked(engine)(tokens) < CHUNKS * CHUNK
    until(lambda: Asked(engine)(tokens) == CHUNKS * CHUNK)


def test_what_nobody_wrote_is_no_hit(server: CacheServer, engine: SimulatedEngine) -> None:
    """A writer reserves, and completes what it never wrote."""
    scheduler, worker = caches(engine)
    tokens = prompt(31)
    digests = scheduler._tracked(engine.request("abandoned", tokens)).digests.first(CHUNKS, tokens)
    scheduler.forget("abandoned", hidden=True)
    found = announced(server.directory)
    assert found is not None
    with closing(Client(server.directory / found.socket)) as client:
        asked = Objects(worker._row, digests)
        assert min(client.call("reserve", asked, 1).offsets) >= 0
        client.call("complete", asked, 1)
    assert Asked(engine)(tokens) <= 0
    until(lambda: Asked(engine)(tokens) == CHUNKS * CHUNK)


def test_a_server_that_is_killed_is_missed_by_nobody(
    server: CacheServer, engine: SimulatedEngine
) -> None:
    tokens, ask = stored(engine, 40), Asked(engine)
    server.serving.kill()
    began = time.monotonic()
    assert ask(tokens) == 0
    assert time.monotonic() - began < 2
    # From the end of the server on, with a process that is forked anew.
    until(lambda: ask(tokens) == CHUNKS * CHUNK, seconds=5)


def test_a_server_that_is_killed_during_a_load(
    server: CacheServer, engine: SimulatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, ask, real = stored(engine, 41), Asked(engine), MultiprocessWorkerCache._chunks
    ended = threading.Event()

    def killed(*arguments: Any) -> Any:
        if not ended.is_set():
            ended.set()
            server.kill()
        return real(*arguments)

    monkeypatch.setattr(MultiprocessWorkerCache, "_chunks", killed)
    # The old memory is still there, and what is in it is still right.
    assert ask(tokens) == CHUNKS * CHUNK
    assert ended.is_set()
    until(lambda: ask(tokens) == CHUNKS * CHUNK)


def test_a_server_that_stands_still_costs_no_more_than_its_deadlines(
    server: CacheServer, engine: SimulatedEngine
) -> None:
    tokens, ask = stored(engine, 42), Asked(engine)
    stopped = server.serving
    stopped.suspend()
    try:
        seconds = []
        for number in range(6):
            began = time.monotonic()
            assert ask(prompt(50 + number)) == 0
            seconds.append(time.monotonic() - began)
        # A lookup, and the room for what each of a few steps saves.
        assert max(seconds) < 1
        assert sum(seconds[-3:]) < 0.5
    finally:
        stopped.resume()
    until(lambda: ask(tokens) == CHUNKS * CHUNK, seconds=5)


def test_a_server_that_stays_silent_is_replaced(
    server: CacheServer, engine: SimulatedEngine
) -> None:
    before = server.incarnation
    send(server.serving.pid, signal.SIGSTOP)
    until(lambda: server.incarnation not in ("", before), seconds=15)
    stored(engine, 43)


def test_the_server_that_is_announced_answers(server: CacheServer) -> None:
    welcome = hello(server)
    assert welcome.incarnation == server.incarnation
    assert (SHARED_MEMORY / welcome.segment).stat().st_size == welcome.size


def hello(server: CacheServer) -> Welcome:
    found = announced(server.directory)
    assert found is not None
    with closing(Client(server.directory / found.socket)) as client:
        welcome: Welcome = client.call("hello", Hello(), 2)
        return welcome


def test_a_row_is_of_one_worker(server: CacheServer) -> None:
    found = announced(server.directory)
    assert found is not None
    with closing(Client(server.directory / found.socket)) as client:
        digest, size = b"1" * 32, 4096
        for rank in (0, 1):
            asked = Objects(Row("m", (rank, 2), size), [digest])
            assert client.call("reserve", asked, 1).offsets[0] >= 0
            client.call("complete", asked, 1)
            assert client.call("read", Objects(Row("m", (1, 2), size), [digest]), 1).offsets == (
                [] if rank == 0 else client.call("read", asked, 1).offsets
            )
