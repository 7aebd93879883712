"""The writer: what it writes, when it gives memory back, and what it measures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.metrics.table import metric
from kserve_lmcache.tiers.guard import daemon_threads
from kserve_lmcache.tiers.guard.codec import CorruptValueError, decode_value
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


def test_memory_that_changes_while_a_thread_hangs_is_never_stored_as_a_chunk() -> None:
    """LMCache may use the memory again when it ends, and the thread may write still later."""
    hangs, go_on = threading.Event(), threading.Event()

    class HangingStore(FakeStore):
        def sizes(self, keys: Sequence[str]) -> list[int]:
            hangs.set()
            go_on.wait(20)
            return super().sizes(keys)

    store = HangingStore()
    tier = tier_of(lambda kind: store, write=0.05)
    memory = bytearray(chunks("a")["a"])
    tier.store("a", LAYOUT, memory, lambda: None)
    assert hangs.wait(5)
    until(lambda: tier.report()["failures"] == 1)
    memory[:] = chunks("other")["other"]
    go_on.set()
    until(lambda: "a" in store.values)
    with pytest.raises(CorruptValueError, match="checksum"):
        decode_value("a", store.values["a"])
    tier.close()


def test_an_unexpected_exception_ends_no_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_threads, "_RESTART_SECONDS", 0.01)
    store = FakeStore()
    tier = tier_of(lambda kind: store)
    store.full = True

    def fail(reason: str) -> None:
        store.full = False
        raise RuntimeError("nobody expects this")

    monkeypatch.setattr(tier._writer, "_on_full", fail)
    store_all(tier, chunks("a"))
    until(lambda: tier.report()["exceptions"] == 1)
    tier._writer._full_until = 0.0
    store_all(tier, chunks("b"))
    until(lambda: "b" in store.values)
    tier.close()


def test_a_chunk_that_cannot_be_released_keeps_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    store, go_on, released = FakeStore(), threading.Event(), []
    tier = tier_of(lambda kind: store)
    monkeypatch.setattr(store, "keep", lambda keys: go_on.wait(20))

    def fail() -> None:
        raise AssertionError("released twice")

    tier._writer.keep(["x"])  # holds the writer until all chunks are in one batch
    for key, value in chunks("a", "b", "c").items():
        tier.store(key, LAYOUT, value, fail if key == "a" else lambda: released.append(1))
    go_on.set()
    until(lambda: tier.report()["queue_bytes"] == 0 and len(released) == 2)
    assert tier.report()["exceptions"] == 1
    tier.close()


def test_the_bugs_that_are_known_are_bounded() -> None:
    tier = tier_of(lambda kind: FakeStore())
    for number in range(1000):
        kind = type(f"Error{number}", (Exception,), {})
        for each in (kind(), ValueError(f"value {number}")):
            tier.log_bug(each)
    assert len(tier._logged_bugs) <= 100
    assert tier.report()["exceptions"] == 2000
    tier.close()
