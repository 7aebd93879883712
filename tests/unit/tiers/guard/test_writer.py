"""The writer: what it writes, when it gives memory back, and what it measures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.metrics.table import metric
from kserve_lmcache.tiers.guard.store import Entry, StoreFullError
from kserve_lmcache.tiers.guard.tier import Tier
from tests.support.tiers import LAYOUT, SIZE, chunks, store_all
from tests.support.waiting import until


class FakeStore:
    """A store in memory."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.full = False

    def ping(self) -> None: ...

    def sizes(self, keys: Sequence[str]) -> list[int]:
        return [len(self.values.get(key, b"")) for key in keys]

    def write(self, entries: Sequence[Entry]) -> None:
        if self.full:
            raise StoreFullError("no room")
        for entry in entries:
            self.values[entry.key] = entry.header + bytes(entry.payload)

    def keep(self, keys: Sequence[str]) -> None: ...

    def delete(self, keys: Sequence[str]) -> None: ...

    def abort(self) -> None: ...

    def close(self) -> None: ...


def tier_of(make_store: Callable[[str], Any], **limits: Any) -> Tier:
    tier = Tier("test", make_store, TierLimits(**limits), 16, SIZE)
    until(lambda: bool(tier.report()["up"]))
    return tier


def observed() -> float:
    _, *counts = metric("store_seconds", tier="remote").value()
    return float(sum(counts))


def test_the_duration_of_a_batch_is_measured() -> None:
    before = observed()
    tier = tier_of(lambda kind: FakeStore())
    store_all(tier, chunks("a"))
    until(lambda: observed() == before + 1)
    store_all(tier, chunks("b"))
    until(lambda: observed() == before + 2)
    tier.close()


def test_a_full_store_is_no_failure() -> None:
    store = FakeStore()
    store.full = True
    tier = tier_of(lambda kind: store)
    store_all(tier, chunks("a"))
    until(lambda: tier.report()["dropped_full"] == 1)
    report = tier.report()
    assert (report["failures"], report["exceptions"], report["chunks_written"]) == (0, 0, 0)
    assert report["up"]
    tier.close()


def test_a_write_that_was_given_up_before_it_began_writes_nothing() -> None:
    """Its chunks' memory has been given back, and may hold other chunks by then."""
    store, connect = FakeStore(), threading.Event()
    connect.set()

    def make_store(kind: str) -> FakeStore:
        if kind == "write":
            connect.wait(20)
        return store

    tier = tier_of(make_store, write=0.05)
    tier._executors["write"].renew()
    connect.clear()
    released = threading.Event()
    tier.store("a", LAYOUT, chunks("a")["a"], released.set)
    until(lambda: tier.report()["failures"] == 1)
    assert released.wait(5)
    connect.set()
    store_all(tier, chunks("b"))
    until(lambda: tier.report()["chunks_written"] == 1)
    assert [*store.values] == ["b"]
    tier.close()
