"""Whatever the order of requests, steps, loads, failures and aborts, every answer is right.

Hypothesis chooses the schedule: a load takes a number of the engine's steps, and not of seconds.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kserve_lmcache.compat.lmcache import engine as lmcache_engine
from tests.support.simulated_engine import BLOCK, CHUNK, SimulatedEngine, continuation, simulated

STEPS = 20_000  # more than any schedule needs; one that never ends has a deadlock
PROMPTS = [[number, *(place * 7 % 250 for place in range(6 * CHUNK))] for number in range(3)]

Action = tuple[str, int, int]


class Loads:
    """Lets each load take some steps, and lose some of its blocks."""

    def __init__(self) -> None:
        self.steps: Iterator[int] = itertools.repeat(0)
        self.lost: Iterator[bool] = itertools.repeat(False)
        self._now = 0
        self._held: list[tuple[int, threading.Event]] = []
        self._lock = threading.Lock()

    def load(self, adapter: Any, request_id: str, **others: Any) -> set[int]:
        """In the place of LMCache's."""
        with self._lock:
            steps, lost, goes_on = next(self.steps), next(self.lost), threading.Event()
            self._held.append((self._now + steps, goes_on))
        assert goes_on.wait(60)
        missing = _real_load(adapter, request_id, **others)
        if lost:
            missing |= set(others["blocks"][others["computed_tokens"] // BLOCK :][-4:])
            for layer in adapter.kv_caches.values():
                layer[list(missing)] = -1
        return missing

    def step(self) -> None:
        """A step of the engine is over."""
        with self._lock:
            self._now += 1
            for until, goes_on in self._held:
                if until <= self._now:
                    goes_on.set()
            self._held = [each for each in self._held if not each[1].is_set()]


_real_load = lmcache_engine.load
actions = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 2), st.integers(CHUNK, 6 * CHUNK)),
        st.tuples(st.just("add"), st.integers(0, 2), st.integers(CHUNK, 6 * CHUNK)),
        st.tuples(st.just("step"), st.integers(1, 8), st.just(0)),
        st.tuples(st.just("abort"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("forget"), st.just(0), st.just(0)),
    ),
    max_size=30,
)


@pytest.fixture(scope="module", params=[34, 64], ids=["full cache", "roomy cache"])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimulatedEngine]:
    directory = tmp_path_factory.mktemp("model")
    with simulated(directory, request.param, async_scheduling=True) as engine:
        for number, prompt in enumerate(PROMPTS):
            engine.ask(f"stored {number}", prompt)
        yield engine


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    schedule=actions,
    steps=st.lists(st.integers(0, 30), min_size=1, max_size=8),
    lost=st.lists(st.booleans(), min_size=1, max_size=8),
)
def test_every_answer_is_right(
    engine: SimulatedEngine, schedule: list[Action], steps: list[int], lost: list[bool]
) -> None:
    loads, prompts = Loads(), dict[str, list[int]]()
    loads.steps, loads.lost = itertools.cycle(steps), itertools.cycle(lost)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lmcache_engine, "load", loads.load)
        for kind, first, second in schedule:
            if kind == "add":
                name = f"request {len(engine.said)}"
                prompts[name] = PROMPTS[first][:second]
                engine.add(name, prompts[name])
            elif kind == "abort":
                if len(live := [each for each in prompts if each not in engine.finished]) > first:
                    engine.abort(live[first])
                    del prompts[live[first]]
            elif kind == "forget":
                engine.scheduler.reset_prefix_cache()
            else:
                for _ in range(first):
                    engine.step()
                    loads.step()
        for _ in range(STEPS):
            if not engine.is_busy():
                break
            engine.step()
            loads.step()
    assert not engine.is_busy(), f"still unfinished: {sorted(engine.scheduler.requests)}"
    for name, prompt in prompts.items():
        assert engine.said[name] == continuation(prompt, 4)
    assert not engine.worker.wrong
    assert engine.errors() == {}
    pool = engine.scheduler.kv_cache_manager.block_pool
    assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1  # vLLM keeps one block
    assert not engine.adapters[1].lmcache_engine.lookup_pins
