"""A cache server whose memory is too small, that has tiers below, or that outlives its engine."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kserve_lmcache.cache_server import server as module
from kserve_lmcache.cache_server.messages import Objects, Slots
from kserve_lmcache.cache_server.process import Settings
from kserve_lmcache.cache_server.service import Service
from kserve_lmcache.config import engine_file
from kserve_lmcache.config.stores import Disk, Remote
from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.metrics.table import metric
from tests.support.cache_server import CacheServer, cache_server
from tests.support.cache_server_engine import CHUNKS, Asked, connected, prompt, stored
from tests.support.simulated_engine import CHUNK, SimulatedEngine, simulated
from tests.support.stores import Store
from tests.support.waiting import until


def test_an_engine_that_restarts_finds_what_it_stored(tmp_path: Path) -> None:
    tokens = prompt(5)
    with cache_server(tmp_path, chunk_size=CHUNK) as one:
        for expected in (0, CHUNKS * CHUNK):
            with beside(tmp_path, one) as (_, ask):
                assert ask(tokens) == expected


def test_more_than_fits(tmp_path: Path) -> None:
    """Old chunks go when their room is needed."""
    with (
        cache_server(tmp_path, size=2**20, chunk_size=CHUNK) as server,
        simulated(tmp_path, server=server) as engine,
    ):
        connected(engine)
        ask = Asked(engine)
        dropped = metric("dropped_full_total", tier="local_cpu").value()
        for number in range(60):
            assert ask(prompt(number)) == 0
            until(lambda number=number: ask(prompt(number)) == CHUNKS * CHUNK)
        assert ask(prompt(0)) == 0
        assert metric("dropped_full_total", tier="local_cpu").value() == dropped
        assert engine.errors() == {}
        assert not engine.worker.wrong


def test_room_that_comes_too_late_for_a_step_is_there_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve, late = Service.reserve, 0

    def reserve_late(service: Service, objects: Objects) -> Slots:
        nonlocal late
        slots = reserve(service, objects)
        if late:
            late -= 1
            time.sleep(0.2)
        return slots

    monkeypatch.setattr(Service, "reserve", reserve_late)
    with server_of_this_process(tmp_path) as one, beside(tmp_path, one) as (engine, _):
        late = 2  # three in a row end the use of the server
        stored(engine, 1)
    assert not late


@pytest.mark.parametrize(("size", "loaded"), [(2**19, 24), (2**18, 21)], ids=["half", "all"])
def test_a_full_memory_has_room_for_what_a_store_has(
    server: Store, remote: Remote, tmp_path: Path, size: int, loaded: int
) -> None:
    """Half of the memory, and more than all of it: an object takes 12 KiB."""
    with new_server(tmp_path / "one", remote) as one, beside(tmp_path, one) as (engine, _):
        tokens = stored(engine, 1, chunks=24)
        written(server, 24)
    small = new_server(tmp_path / "other", remote, size=size)
    with small as other, beside(tmp_path, other) as (engine, ask):
        for number in range(2, 12):
            stored(engine, number)
        written(server, 24 + 10 * CHUNKS)  # until then they keep their room
        assert ask(tokens) == loaded * CHUNK


@contextmanager
def beside(directory: Path, server: CacheServer) -> Iterator[tuple[SimulatedEngine, Asked]]:
    with simulated(directory, server=server) as engine:
        connected(engine)
        yield engine, Asked(engine)
        assert not engine.worker.wrong
        assert engine.errors() == {}


@contextmanager
def server_of_this_process(directory: Path) -> Iterator[Any]:
    file = directory / "lmcache.yaml"
    values = {"chunk_size": CHUNK, "max_local_cpu_size": 2**20 / 2**30}
    engine_file.write(values, None, file, None, None)
    with module.serve(Settings(file, 2**20)):
        yield SimpleNamespace(file=file, directory=directory)


def new_server(directory: Path, remote: Remote, **options: Any) -> Any:
    directory.mkdir()
    return cache_server(directory, remote=remote, chunk_size=CHUNK, **options)


def keys(store: Store) -> list[bytes]:
    return sorted(store.client().keys("kserve-lmcache:*"))


def written(store: Store, count: int) -> None:
    until(lambda: len(keys(store)) == count)


def test_another_server_takes_it_from_the_store(
    server: Store, remote: Remote, tmp_path: Path
) -> None:
    with new_server(tmp_path / "one", remote) as one, beside(tmp_path, one) as (engine, ask):
        tokens = stored(engine, 1)
        salted = stored(engine, 2, cache_salt="tenant")
        written(server, 2 * CHUNKS)
    with new_server(tmp_path / "other", remote) as other, beside(tmp_path, other) as (engine, ask):
        read = metric("prompt_tokens_total", source="remote").value()
        assert ask(tokens) == CHUNKS * CHUNK
        assert metric("prompt_tokens_total", source="remote").value() - read == CHUNKS * CHUNK
        assert ask(tokens) == CHUNKS * CHUNK
        # The second time from the memory.
        assert metric("prompt_tokens_total", source="remote").value() - read == CHUNKS * CHUNK
        assert ask(salted) == 0
        assert ask(salted, cache_salt="tenant") == CHUNKS * CHUNK


def test_a_server_that_was_killed_comes_back_with_what_the_store_has(
    server: Store, remote: Remote, tmp_path: Path
) -> None:
    with new_server(tmp_path / "one", remote) as one, beside(tmp_path, one) as (engine, ask):
        tokens = stored(engine, 3)
        written(server, CHUNKS)
        one.kill()
        until(lambda: ask(tokens) == CHUNKS * CHUNK, seconds=5)


@pytest.mark.parametrize("fault", ["flipped", "exchanged", "cut", "emptied"])
def test_values_that_are_not_what_was_stored_are_computed(
    server: Store, remote: Remote, tmp_path: Path, fault: str
) -> None:
    with new_server(tmp_path / "one", remote) as one, beside(tmp_path, one) as (engine, ask):
        tokens = stored(engine, 4, chunks=2)
        written(server, 2)
        client, names = server.client(), keys(server)
        values = [client.get(name) for name in names]
        chance = random.Random(fault)
        for name, value, next_value in zip(names, values, values[1:] + values[:1], strict=True):
            place = chance.randrange(len(value))
            client.set(
                name,
                {
                    "flipped": value[:place] + bytes([value[place] ^ 1]) + value[place + 1 :],
                    "exchanged": next_value,
                    "cut": value[:place],
                    "emptied": b"",
                }[fault],
            )
        loaded = []
        for _ in names:
            # Only the store has it now. What is found to be wrong is deleted, and written again.
            one.kill()
            connected(engine)
            loaded.append(ask(tokens))
            until(lambda: ask(tokens) == 2 * CHUNK)
            until(lambda: len(keys(server)) == 2)
        assert loaded[0] == 0
        assert [client.get(name) for name in names] == values


def test_a_store_that_is_gone_costs_its_deadlines(
    server: Store, remote: Remote, tmp_path: Path
) -> None:
    with new_server(tmp_path / "one", remote) as one, beside(tmp_path, one) as (engine, ask):
        tokens = stored(engine, 5)
        server.own_process().signal(signal.SIGSTOP)
        try:
            seconds = []
            for number in range(8):
                began = time.monotonic()
                assert ask(prompt(60 + number)) == 0
                seconds.append(time.monotonic() - began)
            assert ask(tokens) == CHUNKS * CHUNK  # from the memory
        finally:
            server.own_process().signal(signal.SIGCONT)
        assert max(seconds) < 1
        assert sum(seconds[-3:]) < 0.6


def test_a_disk_keeps_it_over_a_restart(tmp_path: Path) -> None:
    disk = Disk((str(tmp_path / "disk"),), 2**24)
    options: dict[str, Any] = {"chunk_size": CHUNK, "disk": (disk, TierLimits(lookup=1))}
    (tmp_path / "one").mkdir()
    with (
        cache_server(tmp_path / "one", **options) as one,
        beside(tmp_path, one) as (engine, ask),
    ):
        tokens = stored(engine, 6)
        until(lambda: len([*(tmp_path / "disk").glob("*.kv")]) == CHUNKS)
        one.kill()
        until(lambda: ask(tokens) == CHUNKS * CHUNK, seconds=5)
