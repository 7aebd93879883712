"""Lookups are answered at once, or pending; nobody waits for a tier (the contract with LMCache)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.lookup_client.hit_limit_lookup_client import HitLimitLookupClient
from lmcache.v1.lookup_client.lmcache_lookup_client import LMCacheLookupClient

from kserve_lmcache.compat.lmcache.lookups import LookupPending, SchedulerLookups, WorkerLookups
from kserve_lmcache.config.stores import Disk
from tests.support.lmcache_engine import CHUNK
from tests.support.replica import Replica, pages, prompt, replica
from tests.support.waiting import until

PENDING = 2**32 - 1


class Worker:
    """A worker's lookups over a disk tier whose answer can be held back."""

    def __init__(self, one: Replica, pool: ThreadPoolExecutor, seconds: float) -> None:
        self.engine, self.tier = one.engine, one.tier
        self.answers = threading.Event()
        self.answers.set()
        real = one.tier.lookup

        def lookup(keys: list[str]) -> int:
            assert self.answers.wait(20)
            return real(keys)

        one.tier.lookup = lookup  # type: ignore[method-assign]
        self.counted: list[tuple[int, int]] = []
        self.failed: list[str] = []
        config = SimpleNamespace(lookup_timeout_ms=seconds * 1000)
        adapter: Any = SimpleNamespace(lmcache_engine=one.engine, config=config)
        WorkerLookups(
            adapter,
            pool,
            lambda *chunks: self.counted.append(chunks),
            lambda call, error: self.failed.append(f"{call}: {error}"),
        )

    def ask(self, number: int, name: str, again: bool = False) -> int:
        """As LMCache's server asks, for a prompt of four chunks."""
        hashes: list[Any] = []
        if not again:
            keys = self.engine.token_database.process_tokens(prompt(number), make_key=False)
            hashes = [key for _, _, key in keys]
        return self.engine.lookup(
            hashes=hashes,
            offsets=[CHUNK] * len(hashes),
            lookup_id=name,
            pin=True,
            request_configs=None,
        )

    def result(self, name: str) -> int:
        """Ask again until there is a result."""
        found: list[int] = []

        def ask() -> bool:
            found.append(self.ask(0, name, again=True))
            return found[-1] != PENDING

        until(ask)
        return found[-1]

    def held(self) -> list[Any]:
        """What may not be evicted."""
        memory = self.engine.storage_manager.storage_backends["LocalCPUBackend"]
        pinned = [each for each in memory.hot_cache.values() if each.is_pinned]
        return [*self.engine.lookup_pins, *pinned]


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    disk = Disk((str(tmp_path),), 2**30)
    with ThreadPoolExecutor(4) as pool:
        with replica(None, disk=disk) as one:
            one.store(prompt(1), pages(1))
        with replica(None, disk=disk) as one:
            one.store(prompt(2), pages(2))
            yield Worker(one, pool, seconds=10)


def test_the_local_tiers_answer_is_immediate(worker: Worker) -> None:
    worker.answers.clear()
    assert worker.ask(2, "local") == 4 * CHUNK
    assert worker.counted == [(4, 4)]
    worker.engine.lookup_unpin("local")
    assert not worker.held()
    worker.answers.set()


def test_another_tiers_answer_comes_later_and_holds_up_no_other_lookup(worker: Worker) -> None:
    worker.answers.clear()
    began = time.monotonic()
    assert worker.ask(1, "slow") == PENDING
    assert worker.ask(3, "slow as well") == PENDING
    assert worker.ask(1, "slow", again=True) == PENDING
    assert worker.ask(2, "local") == 4 * CHUNK
    assert time.monotonic() - began < 1
    worker.answers.set()
    assert worker.result("slow as well") == 0
    assert worker.result("slow") == 4 * CHUNK
    assert sorted(worker.counted) == [(4, 0), (4, 0), (4, 4)]
    for name in ("slow", "slow as well", "local"):
        worker.engine.lookup_unpin(name)
    assert not worker.held()
    assert worker.failed == []


def test_a_lookup_that_nobody_waits_for_any_more_pins_nothing(worker: Worker) -> None:
    worker.answers.clear()
    assert worker.ask(1, "given up") == PENDING
    worker.engine.lookup_unpin("given up")
    worker.answers.set()
    until(lambda: len(worker.counted) == 1)
    until(lambda: not worker.held())
    assert worker.ask(0, "given up", again=True) == 0


def test_a_lookup_that_fails_or_takes_too_long_is_a_miss(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.answers.clear()
    assert worker.ask(1, "late") == PENDING
    real = time.monotonic
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: real() + 11)
        assert worker.ask(0, "late", again=True) == 0
    assert worker.failed == ["lookup: no tier answered a lookup within 10 s"]
    worker.answers.set()
    until(lambda: not worker.held())
    with monkeypatch.context() as patch:
        patch.setattr(worker.engine.storage_manager, "batched_contains", lambda *_: 1 / 0)
        assert worker.ask(1, "fails") == 0
    assert worker.failed[1:] == ["lookup: division by zero"]


class MockTransport:
    """A stand-in for LMCache's: two workers, whose answers the test gives."""

    world_size = 2

    def __init__(self) -> None:
        self.answers: list[list[int]] = []
        self.asked: list[list[Any]] = []

    def send_and_recv_all(self, message: list[Any]) -> list[bytes]:
        self.asked.append(message)
        return [each.to_bytes(4, "big") for each in self.answers.pop(0)]

    def close(self) -> None:
        self.answers.clear()


class Scheduler:
    """A scheduler's lookups."""

    def __init__(self) -> None:
        config = LMCacheEngineConfig.from_defaults(
            chunk_size=CHUNK, pre_caching_hash_algorithm="sha256_cbor", hit_miss_ratio=0.0
        )
        self.transport = MockTransport()
        inner = LMCacheLookupClient(config, None, self.transport)  # type: ignore[arg-type]
        self.client = HitLimitLookupClient(inner, config)  # as LMCache wraps it
        adapter: Any = SimpleNamespace(lookup_client=self.client)
        self.lookups = SchedulerLookups(adapter)

    def ask(self, *answers: int) -> int | None:
        self.transport.answers.append(list(answers))
        found: int | None = self.client.lookup(list(range(3 * CHUNK)), "request", None)
        return found


def test_the_scheduler_asks_until_all_workers_have_a_result() -> None:
    scheduler = Scheduler()
    for answers in ((PENDING, PENDING), (2 * CHUNK, PENDING), (0, PENDING)):
        with pytest.raises(LookupPending):
            scheduler.ask(*answers)
    assert scheduler.client.lookup_cache("request") == -1
    # A worker that has answered knows nothing of the request any more.
    assert scheduler.ask(0, 3 * CHUNK) == 2 * CHUNK
    assert scheduler.client.lookup_cache("request") == 2 * CHUNK
    first, *others = scheduler.transport.asked
    assert len(first[0]) == 3
    assert others == [[[], [], "request", ""]] * 3
    assert scheduler.lookups._results == {}


def test_a_result_that_is_there_at_once_is_what_it_was() -> None:
    scheduler = Scheduler()
    assert scheduler.ask(3 * CHUNK, CHUNK) == CHUNK
    assert scheduler.ask(0, 0) == 0


def test_workers_that_do_not_answer_are_a_miss() -> None:
    scheduler = Scheduler()
    assert scheduler.ask() == 0
    with pytest.raises(LookupPending):
        scheduler.ask(PENDING, 0)
    assert scheduler.ask() == 0


def test_a_forgotten_request_is_looked_up_anew() -> None:
    scheduler = Scheduler()
    with pytest.raises(LookupPending):
        scheduler.ask(PENDING, 0)
    assert [*scheduler.lookups._results] == ["request"]
    scheduler.lookups.forget("request")
    assert scheduler.lookups._results == {}
    assert scheduler.ask(CHUNK, CHUNK) == CHUNK
    assert len(scheduler.transport.asked[-1][0]) == 3
    scheduler.client.close()
    assert scheduler.transport.answers == []
