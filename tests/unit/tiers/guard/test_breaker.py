"""The breaker: when it opens and closes, and how often it probes."""

from __future__ import annotations

import time

import pytest

from kserve_lmcache.tiers.guard import breaker as breaker_module
from kserve_lmcache.tiers.guard import daemon_threads
from kserve_lmcache.tiers.guard.breaker import Breaker
from kserve_lmcache.tiers.guard.store import StoreError
from tests.support.waiting import until


class FakeStore:
    """Answers a breaker's probes, and records the breaker's callbacks."""

    def __init__(self) -> None:
        self.answers = True
        self.calls: list[str] = []
        self.begun: list[float] = []
        self.ended: list[float] = []

    def probe(self) -> None:
        self.begun.append(time.monotonic())
        try:
            if not self.answers:
                raise StoreError("no answer")
        finally:
            self.ended.append(time.monotonic())

    def breaker(self) -> Breaker:
        return Breaker(
            self.probe,
            lambda: self.calls.append("closed"),
            lambda reason: self.calls.append(f"opened: {reason}"),
            lambda reason: self.calls.append(f"probe failed: {reason}"),
            lambda error: self.calls.append(f"exception: {error}"),
            "test-probe",
        )


def test_opens_after_three_failures_and_closes_by_itself() -> None:
    store = FakeStore()
    breaker = store.breaker()
    until(lambda: breaker.is_closed)
    store.answers = False
    breaker.failed("load", "one")
    breaker.failed("load", "two")
    breaker.succeeded("load")
    for reason in ("one", "two", "three"):
        assert breaker.is_closed
        breaker.failed("load", reason)
    assert not breaker.is_closed
    until(lambda: store.calls[-1] == "probe failed: no answer")
    store.answers = True
    assert until(lambda: breaker.is_closed) < 5
    assert store.calls[:2] == ["closed", "opened: load: three"]
    breaker.stop()
    assert not breaker.is_closed


def test_opens_when_lookups_succeed_and_loads_fail() -> None:
    store = FakeStore()
    breaker = store.breaker()
    until(lambda: breaker.is_closed)
    for _ in range(3):
        assert breaker.is_closed
        breaker.succeeded("lookup", 0.1)
        breaker.failed("load", "too late")
    until(lambda: "opened: load: too late" in store.calls)
    breaker.stop()


def test_pauses_grow_for_a_store_that_comes_and_goes() -> None:
    store = FakeStore()
    breaker = store.breaker()
    pauses = []
    for _ in range(4):
        until(lambda: breaker.is_closed)
        for _ in range(3):
            breaker.failed("load", "too late")
        pauses.append(until(lambda: breaker.is_closed))
    breaker.stop()
    assert pauses[-1] > 4 * pauses[0]
    assert pauses[-1] > 0.4
    assert store.calls.count("closed") == 5


def test_opens_when_most_calls_are_slow() -> None:
    store = FakeStore()
    breaker = store.breaker()
    until(lambda: breaker.is_closed)
    store.answers = False
    for _ in range(20):
        breaker.succeeded("lookup", 0.5)
    for _ in range(8):
        breaker.succeeded("lookup", 0.9)
    assert breaker.is_closed
    breaker.succeeded("lookup", 0.9)
    assert not breaker.is_closed
    assert "most calls take over 80%" in store.calls[1]
    breaker.stop()


def test_pauses_between_probes_double() -> None:
    store = FakeStore()
    store.answers = False
    began = time.monotonic()
    breaker = store.breaker()
    until(lambda: len(store.ended) >= 5)
    breaker.stop()
    pauses = [begin - end for begin, end in zip(store.begun[1:5], store.ended, strict=False)]
    # Doubled each time, and up to a half less by chance.
    for pause, longest in zip(pauses, (0.1, 0.2, 0.4, 0.8), strict=True):
        assert pause >= longest / 2
    assert store.begun[1] - began < 1


def test_probes_an_idle_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker_module, "_IDLE", 0.05)
    store = FakeStore()
    breaker = store.breaker()
    until(lambda: breaker.is_closed)
    store.answers = False
    until(lambda: not breaker.is_closed)
    assert "opened: no answer" in store.calls
    store.answers = True
    until(lambda: breaker.is_closed)
    breaker.stop()


@pytest.mark.parametrize("callback", ["_on_close", "_on_open", "_on_probe_failure"])
def test_an_unexpected_exception_ends_no_probes(
    callback: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker_module, "_IDLE", 0.05)
    monkeypatch.setattr(daemon_threads, "_RESTART_SECONDS", 0.01)
    store = FakeStore()
    breaker = store.breaker()
    until(lambda: breaker.is_closed)

    def fail(*args: object) -> None:
        monkeypatch.undo()
        monkeypatch.setattr(breaker_module, "_IDLE", 0.05)
        raise RuntimeError("nobody expects this")

    monkeypatch.setattr(breaker, callback, fail)
    store.answers = False  # an idle store is probed, which opens the breaker
    until(lambda: not breaker.is_closed)
    if callback == "_on_probe_failure":
        until(lambda: "exception: nobody expects this" in store.calls)
    store.answers = True
    until(lambda: "exception: nobody expects this" in store.calls)
    until(lambda: breaker.is_closed)
    store.answers = False
    until(lambda: not breaker.is_closed)
    breaker.stop()
