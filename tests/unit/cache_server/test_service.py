"""The service answers from the memory at once, and from tiers below to who waits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

import pytest

from kserve_lmcache.cache_server import service as module
from kserve_lmcache.cache_server.messages import (
    CALLS,
    Found,
    Hello,
    Lookup,
    Objects,
    Proofs,
    Row,
    Wait,
    Welcome,
)
from kserve_lmcache.cache_server.service import Service
from kserve_lmcache.compat.lmcache.storage import Storage

ROW = Row("model", (0, 1), 100)
DIGESTS = [bytes([number]) * 32 for number in range(5)]
WELCOME = Welcome("incarnation", "segment", 2**20, 256, 2.05)


class MockStorage:
    """Has some chunks, and tiers below that have more."""

    def __init__(self, local: int, below: int | None = None) -> None:
        self.local, self.below = local, below
        self.has_tiers = below is not None
        self.reservation_seconds = 0.05
        self.fetches: list[Sequence[bytes]] = []
        self.given_up: list[bytes] = []
        self.withdrawn: list[bytes] = []
        self.is_fetched = False
        self.taken: list[int] = []

    def find(self, rows: Any, digests: Sequence[bytes]) -> int:
        return min(self.local, len(digests))

    def fetch(self, rows: Any, digests: Sequence[bytes], first: int) -> int:
        self.fetches.append(digests[first:])
        return len(self.fetches)

    def fetched(self, handle: int, seconds: float) -> int | None:
        assert self.below is not None
        if not self.is_fetched or handle in self.taken:
            return None
        self.taken.append(handle)
        return min(self.below, len(self.fetches[handle - 1]))

    def reserve(self, row: Row, digests: Sequence[bytes]) -> tuple[list[int], int]:
        return [4096 * number for number in range(len(digests))], 0

    def complete(self, row: Row, digests: Sequence[bytes]) -> None:
        pass

    def withdraw(self, row: Row, digests: Sequence[bytes]) -> None:
        self.withdrawn.extend(digests)

    def give_up(self, row: Row, digest: bytes) -> None:
        self.given_up.append(digest)


def service(storage: MockStorage) -> Service:
    return Service(
        cast(Storage, storage),
        WELCOME,
        lambda digests: {"remote": len(digests)},
        lambda rate: None,
        lambda: Proofs({}),
    )


def test_every_call_has_a_handler() -> None:
    assert set(service(MockStorage(0)).handlers) == set(CALLS)


@pytest.mark.parametrize(
    ("local", "needed_from", "found"),
    [
        (5, 0, Found(5, 5, {})),
        (3, 0, Found(3, 3, {})),
        (3, 2, Found(3, 1, {})),
        (1, 3, Found(1, 0, {})),
        (0, 0, Found(0, 0, {})),
    ],
)
def test_without_tiers_the_first_answer_is_final(
    local: int, needed_from: int, found: Found
) -> None:
    assert service(MockStorage(local)).lookup(Lookup([ROW], DIGESTS, needed_from)) == found


def test_what_the_memory_lacks_is_fetched() -> None:
    storage = MockStorage(2, below=2)
    asked = service(storage)
    first = asked.lookup(Lookup([ROW], DIGESTS))
    assert (first.local, first.chunks, first.ticket) == (2, 2, 1)
    assert storage.fetches == [DIGESTS[2:]]
    assert asked.wait(Wait(1, 0.0)) == first
    storage.is_fetched = True
    assert asked.wait(Wait(1, 0.0)) == Found(2, 4, {"remote": 2})
    # The ticket was used.
    assert asked.wait(Wait(1, 0.0)) == Found(0, 0, {})


def test_what_vllm_has_is_not_fetched() -> None:
    storage = MockStorage(1, below=9)
    storage.is_fetched = True
    asked = service(storage)
    ticket = asked.lookup(Lookup([ROW], DIGESTS, 3)).ticket
    assert storage.fetches == [DIGESTS[3:]]
    assert asked.wait(Wait(ticket, 0.0)) == Found(1, 2, {"remote": 2})


def test_nothing_is_fetched_where_the_memory_has_all() -> None:
    storage = MockStorage(5, below=5)
    assert service(storage).lookup(Lookup([ROW], DIGESTS)).ticket == 0
    assert storage.fetches == []


def test_an_abandoned_reservation_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = MockStorage(0)
    asked = service(storage)
    asked.reserve(Objects(ROW, DIGESTS[:3]))
    asked.complete(Objects(ROW, DIGESTS[:1]))
    asked.hello(Hello())
    assert storage.given_up == []
    now = time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now + 2)
    asked.reserve(Objects(ROW, DIGESTS[1:2]))  # by another writer
    asked.hello(Hello())
    assert storage.given_up == DIGESTS[2:3]


def test_a_reservation_that_is_withdrawn_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = MockStorage(0)
    asked = service(storage)
    asked.reserve(Objects(ROW, DIGESTS[:2]))
    asked.withdraw(Objects(ROW, DIGESTS[:1]))
    assert storage.withdrawn == DIGESTS[:1]
    now = time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now + 2)
    asked.hello(Hello())
    assert storage.given_up == DIGESTS[1:2]


def test_a_fetch_that_nobody_waits_for_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = MockStorage(0, below=5)
    asked = service(storage)
    ticket = asked.lookup(Lookup([ROW], DIGESTS)).ticket
    now = time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now + 61)
    asked.hello(Hello())
    storage.is_fetched = True
    assert asked.wait(Wait(ticket, 0.0)) == Found(0, 0, {})


def test_the_result_of_a_forgotten_fetch_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The storage keeps a result until somebody takes it."""
    storage = MockStorage(0, below=5)
    asked = service(storage)
    asked.lookup(Lookup([ROW], DIGESTS))
    storage.is_fetched = True
    asked.hello(Hello())
    assert storage.taken == []
    now = time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now + 61)
    storage.is_fetched = False
    asked.hello(Hello())  # too early: the fetch still runs
    storage.is_fetched = True
    asked.hello(Hello())
    assert storage.taken == [1]
    assert asked._fetches == {}


def test_only_so_many_calls_wait_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONG_WAITS", 1)
    storage = MockStorage(0, below=5)
    asked, waited = service(storage), []
    tickets = [asked.lookup(Lookup([ROW], DIGESTS)).ticket for _ in range(2)]

    def fetched(handle: int, seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 1:  # another call, while this one waits
            assert asked.wait(Wait(tickets[1], 2.0)).ticket == tickets[1]

    monkeypatch.setattr(storage, "fetched", fetched)
    for _ in range(2):
        asked.wait(Wait(tickets[0], 2.0))
    assert waited == [2.0, module._SHORT_WAIT, 2.0]
