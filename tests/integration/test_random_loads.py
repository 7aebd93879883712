"""Random requests, with random failures of LMCache, are answered as without any cache.

The connectors, LMCache and vLLM's scheduler are the real ones; the model is a formula
(:mod:`tests.support.simulated_engine`).
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
from lmcache.v1.storage_backend.local_disk_backend import LocalDiskBackend

from kserve_lmcache.compat.lmcache import engine as lmcache_engine
from tests.support.lmcache_faults import inject, lose_chunks
from tests.support.options import option
from tests.support.simulated_engine import CHUNK, SimulatedEngine, continuation, simulated

RUNS = option("--simulated-runs")
CALLS = (
    "get_num_new_matched_tokens",
    "update_state_after_alloc",
    "build_connector_meta",
    "start_load_kv",
    "wait_for_save",
    "get_finished",
    "get_block_ids_with_load_errors",
    "request_finished",
)


class Traffic:
    """Random requests with shared beginnings, some of them aborted, on a small cache."""

    def __init__(self, engine: SimulatedEngine, chance: random.Random, name: str) -> None:
        self.engine, self.chance, self.name = engine, chance, name
        self.begun = [
            [chance.randrange(250) for _ in range(chance.randrange(CHUNK, 5 * CHUNK))]
            for _ in range(3)
        ]
        self.prompts: dict[str, list[int]] = {}

    def add(self) -> None:
        if self.prompts and self.chance.random() < 0.4:
            prompt = self.chance.choice(list(self.prompts.values()))
        else:
            prompt = self.chance.choice(self.begun)[: self.chance.randrange(30, 5 * CHUNK)]
            prompt = prompt + [
                self.chance.randrange(250) for _ in range(self.chance.randrange(4 * CHUNK))
            ]
        name = f"{self.name} {len(self.prompts)}"
        self.prompts[name] = prompt
        self.engine.add(name, prompt, self.chance.randrange(1, 8))

    def run(self, requests: int) -> None:
        for _ in range(requests):
            self.add()
            if self.chance.random() < 0.3:
                continue
            for _ in range(self.chance.randrange(1, 6)):
                self.engine.step(while_it_runs=self._perhaps_abort)
            if self.chance.random() < 0.3:
                self.engine.scheduler.reset_prefix_cache()
        self.engine.run()

    def check(self) -> None:
        """What was said is right, and so is what all caches hold now."""
        for name in self.engine.finished & set(self.prompts):
            said = self.engine.said[name]
            assert said == continuation(self.prompts[name], len(said))
        for again in ("vLLM's", "LMCache's"):
            for name, prompt in self.prompts.items():
                self.engine.add(f"{name} from {again}", prompt, 2)
            self.engine.run()
            for name, prompt in self.prompts.items():
                assert self.engine.said[f"{name} from {again}"] == continuation(prompt, 2)
            self.engine.forget_local()
        assert not self.engine.worker.wrong

    def _perhaps_abort(self) -> None:
        live = [each for each in self.engine.scheduler.requests if each in self.prompts]
        if live and self.chance.random() < 0.1:
            self.engine.abort(self.chance.choice(live))


def delay(patch: pytest.MonkeyPatch, where: Any, name: str, chance: random.Random) -> None:
    """Let some calls take as long as a few steps of the simulated engine."""
    real = getattr(where, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        if chance.random() < 0.5:
            time.sleep(chance.random() * 0.02)
        return real(*args, **kwargs)

    patch.setattr(where, name, call)


@pytest.mark.parametrize("blocks", [34, 64], ids=["full cache", "roomy cache"])
@pytest.mark.parametrize("overlap", [False, True], ids=["one step", "overlapping steps"])
@pytest.mark.parametrize("slow", [False, True], ids=["fast", "slow"])
def test_answers_are_right(
    slow: bool, overlap: bool, blocks: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As fast as the machine, or with delays in loads and in the lookups of a second tier."""
    chance, rate = random.Random(blocks), 0.0
    lmcache = {}
    if slow:
        delay(monkeypatch, lmcache_engine, "load", random.Random(1))
        delay(monkeypatch, LocalDiskBackend, "contains", random.Random(2))
        lmcache = {"LOCAL_DISK": f"file://{tmp_path}/disk", "MAX_LOCAL_DISK_SIZE": "0.5"}
    cut = []

    def kept(count: int) -> int:
        if not rate or chance.random() < 0.5:
            return count
        cut.append(count)
        return chance.randrange(count + 1)

    lose_chunks(monkeypatch, kept)
    with simulated(tmp_path, blocks, lmcache, async_scheduling=overlap) as engine:
        adapter = type(engine.adapters[1])
        for name in CALLS:
            inject(
                monkeypatch,
                adapter,
                name,
                chance=lambda: chance.random() < rate,
                late=lambda: chance.random() < 0.5,
            )
        for number in range(10 * RUNS):
            for rate in (0.0, 0.1, 0.4):
                traffic = Traffic(engine, chance, f"{number} {rate}")
                traffic.run(requests=20)
                rate = 0.0
                traffic.check()
            # Threads take their chances in any order, so that a run may have no fault of a kind.
            if number >= RUNS - 1 and cut and set(CALLS) <= set(engine.errors()):
                break
        else:
            pytest.fail(f"only these failed: {engine.errors()}, loads that were cut: {len(cut)}")
        assert engine.hits > 100 * CHUNK * RUNS
