"""The load cost model: which loads are worth their time, and their deadlines."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kserve_lmcache.tiers.guard import load_cost as load_cost_module
from kserve_lmcache.tiers.guard.load_cost import MIB, LoadCost


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


def compute(
    cost: LoadCost,
    clock: Clock,
    tokens: int,
    seconds: float,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    for _ in range(3):
        cost.prefill.begin_step(tokens)
        clock.now += seconds
        meanwhile()
        cost.prefill.end_step()


def read(cost: LoadCost, size: int, seconds: float) -> None:
    for _ in range(3):
        cost.loaded(size, seconds)


def test_a_slow_load_is_skipped_until_a_measurement_is_fast(clock: Clock) -> None:
    cost = LoadCost(0.05)
    assert cost.is_worth(256, 100 * MIB)  # nothing is known yet
    compute(cost, clock, 512, 0.5)
    assert cost.prefill.tokens_per_second == pytest.approx(1024)
    read(cost, 100 * MIB, 1.0)
    assert cost.bytes_per_second == pytest.approx(100 * MIB)
    assert cost.is_worth(2048, 100 * MIB)
    assert not cost.is_worth(512, 100 * MIB)
    assert cost.begin_measurement()
    assert not cost.begin_measurement()
    cost.measured(100 * MIB, 0.9)
    assert not cost.is_worth(512, 100 * MIB)
    clock.now += 1
    assert cost.begin_measurement()
    cost.measured(100 * MIB, 0.1)
    assert cost.is_worth(512, 100 * MIB)


def test_a_small_measurement_leaves_the_rate_open(clock: Clock) -> None:
    cost = LoadCost(0.05)
    compute(cost, clock, 512, 0.5)
    read(cost, 100 * MIB, 1.0)
    cost.measured(MIB // 2, 0.01)
    assert cost.is_worth(512, 100 * MIB)


def test_one_slow_load_decides_nothing(clock: Clock) -> None:
    cost = LoadCost(0.05)
    compute(cost, clock, 512, 0.5)
    cost.loaded(100 * MIB, 10.0)
    assert cost.is_worth(512, 100 * MIB)


def test_decoding_steps_and_idle_time_do_not_change_the_prefill_rate(clock: Clock) -> None:
    cost = LoadCost(0.05)
    compute(cost, clock, 8, 1)
    assert cost.prefill.tokens_per_second is None
    compute(cost, clock, 512, 0.5)
    for _ in range(5):
        clock.now += 100
        cost.prefill.end_step()
    assert cost.prefill.tokens_per_second == pytest.approx(1024)


def test_what_a_step_loads_does_not_change_the_prefill_rate(clock: Clock) -> None:
    cost = LoadCost(1)
    compute(cost, clock, 1024, 1.5, lambda: cost.prefill.leave_out(0.5))
    cost.prefill.leave_out(1)  # between two steps
    assert cost.prefill.tokens_per_second == pytest.approx(1024)


def test_a_dropped_step_is_no_sample(clock: Clock) -> None:
    cost = LoadCost(1)
    compute(cost, clock, 1024, 0.5, cost.prefill.drop_step)
    assert cost.prefill.tokens_per_second is None


def test_the_deadline_is_at_most_the_duration_of_the_prefill(clock: Clock) -> None:
    cost = LoadCost(0.05)
    read(cost, 100 * MIB, 0.5)
    assert cost.deadline(1024, 50 * MIB, 2.0) == pytest.approx(0.05 + 4 * 0.25)
    assert cost.deadline(1024, 500 * MIB, 2.0) == 2.0
    compute(cost, clock, 1024, 0.5)
    assert cost.deadline(1024, 50 * MIB, 2.0) == pytest.approx(0.5)
    assert cost.deadline(16, 50 * MIB, 2.0) == pytest.approx(0.05)
