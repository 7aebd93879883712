"""The parts that keep a store's faults away from the engine, with stores that misbehave."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from kserve_lmcache.tiers.guard import breaker as breaker_module
from kserve_lmcache.tiers.guard import load_cost as load_cost_module
from kserve_lmcache.tiers.guard.breaker import Breaker
from kserve_lmcache.tiers.guard.counters import Counters
from kserve_lmcache.tiers.guard.deadline_executor import DeadlineExecutor
from kserve_lmcache.tiers.guard.load_cost import MIB, LoadCost
from kserve_lmcache.tiers.guard.store import StoreError, StoreTimeoutError
from tests.support.tiers import threads
from tests.support.waiting import until


class MisbehavingStore:
    """A stand-in for a client: what it does is given with each call."""

    def __init__(self) -> None:
        self.aborted = threading.Event()
        self.closed = threading.Event()

    def abort(self) -> None:
        self.aborted.set()

    def close(self) -> None:
        self.closed.set()


class Stores:
    def __init__(self) -> None:
        self.made: list[MisbehavingStore] = []

    def __call__(self) -> MisbehavingStore:
        self.made.append(MisbehavingStore())
        return self.made[-1]


def lane(stores: Callable[[], MisbehavingStore]) -> DeadlineExecutor:
    return DeadlineExecutor("test", stores)  # type: ignore[arg-type]


def test_a_call_that_hangs_is_abandoned_with_its_client() -> None:
    stores = Stores()
    tried = lane(stores)
    assert tried.call(lambda store: "answer", 5) == "answer"
    began = time.monotonic()
    with pytest.raises(StoreTimeoutError, match=r"no answer within 0.05 s"):
        tried.call(lambda store: store.aborted.wait(5), 0.05)
    assert time.monotonic() - began < 1
    assert tried.call(lambda store: "new", 5) == "new"
    assert len(stores.made) == 2
    assert stores.made[0].closed.wait(5)
    tried.close()
    until(lambda: threads("test") == 0)


def test_threads_that_never_end_do_not_grow_in_number() -> None:
    release = threading.Event()
    tried = lane(Stores())
    for _ in range(3):
        with pytest.raises(StoreTimeoutError):
            tried.call(lambda store: release.wait(20), 0.01)
    with pytest.raises(StoreError, match="3 earlier calls still hang"):
        tried.call(lambda store: "never", 1)
    assert threads("test") == 3
    release.set()
    until(lambda: threads("test") == 0)
    assert tried.call(lambda store: "again", 5) == "again"
    tried.close()


def test_a_call_behind_a_long_one_waits_no_longer_than_it_may() -> None:
    release = threading.Event()
    tried = lane(Stores())
    first = threading.Thread(target=lambda: tried.call(lambda store: release.wait(20), 20))
    first.start()
    until(lambda: threads("test") == 1)
    with pytest.raises(StoreTimeoutError, match="busy"):
        tried.call(lambda store: "second", 0.05)
    release.set()
    first.join()
    assert tried.call(lambda store: "third", 5) == "third"
    tried.close()
    with pytest.raises(StoreError, match="closed"):
        tried.call(lambda store: "fourth", 1)


def test_a_renewed_lane_has_a_new_client_and_still_counts_what_hangs() -> None:
    stores, release = Stores(), threading.Event()
    tried = lane(stores)
    for number in range(2):
        assert tried.call(lambda store: "answer", 5) == "answer"
        assert len(stores.made) == number + 1
        tried.renew()
        assert stores.made[number].closed.wait(5)
    for _ in range(3):
        hanging = threading.Thread(
            target=lambda: tried.call(lambda store: release.wait(20), 20), daemon=True
        )
        hanging.start()
        until(lambda: tried._worker is not None)
        tried.renew()
    with pytest.raises(StoreError, match="3 earlier calls still hang"):
        tried.call(lambda store: "never", 1)
    release.set()
    until(lambda: threads("test") == 0)
    tried.close()


class Line:
    """Tells a breaker whether the store answers, and keeps what it says."""

    def __init__(self) -> None:
        self.answers = True
        self.said: list[str] = []
        self.begun: list[float] = []
        self.ended: list[float] = []

    def probe(self) -> None:
        self.begun.append(time.monotonic())
        try:
            if not self.answers:
                raise StoreError("nobody there")
        finally:
            self.ended.append(time.monotonic())

    def breaker(self) -> Breaker:
        return Breaker(
            self.probe,
            lambda: self.said.append("closed"),
            lambda reason: self.said.append(f"opened: {reason}"),
            lambda reason: self.said.append(f"refused: {reason}"),
            "test-probe",
        )


def test_opens_after_three_failures_and_closes_by_itself() -> None:
    line = Line()
    breaker = line.breaker()
    until(lambda: breaker.is_closed)
    line.answers = False
    breaker.failed("load", "one")
    breaker.failed("load", "two")
    breaker.succeeded("load")
    for reason in ("one", "two", "three"):
        assert breaker.is_closed
        breaker.failed("load", reason)
    assert not breaker.is_closed
    until(lambda: line.said[-1] == "refused: nobody there")
    line.answers = True
    assert until(lambda: breaker.is_closed) < 5
    assert line.said[:2] == ["closed", "opened: load: three"]
    breaker.stop()
    assert not breaker.is_closed


def test_opens_when_all_is_found_and_nothing_comes() -> None:
    line = Line()
    breaker = line.breaker()
    until(lambda: breaker.is_closed)
    for _ in range(3):
        assert breaker.is_closed
        breaker.succeeded("lookup", 0.1)
        breaker.failed("load", "too late")
    until(lambda: "opened: load: too late" in line.said)
    breaker.stop()


def test_a_store_that_comes_and_goes_is_asked_more_and_more_rarely() -> None:
    line = Line()
    breaker = line.breaker()
    pauses = []
    for _ in range(4):
        until(lambda: breaker.is_closed)
        for _ in range(3):
            breaker.failed("load", "too late")
        pauses.append(until(lambda: breaker.is_closed))
    breaker.stop()
    assert pauses[-1] > 4 * pauses[0]
    assert pauses[-1] > 0.4
    assert line.said.count("closed") == 5


def test_opens_when_most_answers_are_slow() -> None:
    line = Line()
    breaker = line.breaker()
    until(lambda: breaker.is_closed)
    line.answers = False
    for _ in range(20):
        breaker.succeeded("lookup", 0.5)
    for _ in range(8):
        breaker.succeeded("lookup", 0.9)
    assert breaker.is_closed
    breaker.succeeded("lookup", 0.9)
    assert not breaker.is_closed
    assert "most calls take over 80%" in line.said[1]
    breaker.stop()


def test_one_probe_at_a_time_and_more_rarely_with_time() -> None:
    line = Line()
    line.answers = False
    began = time.monotonic()
    breaker = line.breaker()
    until(lambda: len(line.ended) >= 5)
    breaker.stop()
    pauses = [begin - end for begin, end in zip(line.begun[1:5], line.ended, strict=False)]
    # Doubled each time, and up to a half less by chance.
    for pause, longest in zip(pauses, (0.1, 0.2, 0.4, 0.8), strict=True):
        assert pause >= longest / 2
    assert line.begun[1] - began < 1


def test_a_store_that_nobody_asks_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker_module, "_IDLE", 0.05)
    line = Line()
    breaker = line.breaker()
    until(lambda: breaker.is_closed)
    line.answers = False
    until(lambda: not breaker.is_closed)
    assert "opened: nobody there" in line.said
    line.answers = True
    until(lambda: breaker.is_closed)
    breaker.stop()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(load_cost_module, "time", clock)
    return clock


def compute(cost: LoadCost, clock: Clock, tokens: int, seconds: float) -> None:
    for _ in range(3):
        cost.prefill.begin_step(tokens)
        clock.now += seconds
        cost.prefill.end_step()


def read(cost: LoadCost, size: int, seconds: float) -> None:
    for _ in range(3):
        cost.loaded(size, seconds)


def test_a_load_that_would_lose_is_not_worth_it_until_it_is_tried_again(clock: Clock) -> None:
    cost = LoadCost(0.05)
    assert cost.is_worth(256, 100 * MIB)  # nothing is known yet
    compute(cost, clock, 512, 0.5)
    assert cost.prefill.tokens_per_second == pytest.approx(1024)
    read(cost, 100 * MIB, 1.0)
    assert cost.bytes_per_second == pytest.approx(100 * MIB)
    assert cost.is_worth(2048, 100 * MIB)
    assert not cost.is_worth(512, 100 * MIB)
    clock.now += 31
    assert cost.is_worth(512, 100 * MIB)


def test_one_slow_load_decides_nothing(clock: Clock) -> None:
    cost = LoadCost(0.05)
    compute(cost, clock, 512, 0.5)
    cost.loaded(100 * MIB, 10.0)
    assert cost.is_worth(512, 100 * MIB)


def test_steps_of_decoding_and_idle_time_say_nothing_of_a_prefill(clock: Clock) -> None:
    cost = LoadCost(0.05)
    compute(cost, clock, 8, 1)
    assert cost.prefill.tokens_per_second is None
    compute(cost, clock, 512, 0.5)
    for _ in range(5):
        clock.now += 100
        cost.prefill.end_step()
    assert cost.prefill.tokens_per_second == pytest.approx(1024)


def test_a_load_may_take_no_longer_than_the_prefill_that_it_replaces(clock: Clock) -> None:
    cost = LoadCost(0.05)
    read(cost, 100 * MIB, 0.5)
    assert cost.deadline(1024, 50 * MIB, 2.0) == pytest.approx(0.05 + 4 * 0.25)
    assert cost.deadline(1024, 500 * MIB, 2.0) == 2.0
    compute(cost, clock, 1024, 0.5)
    assert cost.deadline(1024, 50 * MIB, 2.0) == pytest.approx(0.5)
    assert cost.deadline(16, 50 * MIB, 2.0) == pytest.approx(0.05)


def test_counts_have_names() -> None:
    counters = Counters("remote")
    counters.add("failures", 2)
    assert counters["failures"] == 2
    with pytest.raises(KeyError):
        counters.add("anything")
