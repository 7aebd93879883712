"""Requests are computed and shared on what was loaded, and never on what was to be.

The connectors, LMCache and vLLM's scheduler are the real ones; the model is a formula
(:mod:`tests.support.simulated_engine`).
"""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from lmcache.v1.cache_engine import LMCacheEngine
from vllm.distributed.kv_transfer.kv_connector.v1 import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1
from vllm.distributed.kv_transfer.kv_connector.v1.lmcache_connector import LMCacheConnectorV1

from kserve_lmcache.compat.lmcache import engine as lmcache_engine
from kserve_lmcache.connector import KServeLMCacheConnector
from kserve_lmcache.connector.reporter import REPORTER
from kserve_lmcache.metrics.table import COMPUTED, PREFIX_CACHE, TIERS, metric
from kserve_lmcache.tiers.guard.tier import LOADS
from tests.support.lmcache_faults import inject, lose_chunks
from tests.support.simulated_engine import (
    BLOCK,
    CHUNK,
    SimulatedEngine,
    continuation,
    simulated,
)
from tests.support.waiting import until

PROMPT = [number * 7 % 250 for number in range(6 * CHUNK + 9)]


@pytest.fixture(scope="module", params=[False, True], ids=["one step", "overlapping steps"])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimulatedEngine]:
    with simulated(tmp_path_factory.mktemp("model"), async_scheduling=request.param) as engine:
        yield engine


@pytest.fixture(autouse=True)
def _no_errors(engine: SimulatedEngine) -> None:
    engine.forget_errors()


def stored(engine: SimulatedEngine, number: int) -> list[int]:
    """A prompt of its own for each test, that LMCache has and vLLM does not."""
    prompt = [number, *PROMPT]
    engine.ask(f"{number} stored", prompt)
    engine.forget_local()
    engine.hits = engine.failed = 0
    return prompt


def count_loads(patch: pytest.MonkeyPatch) -> list[str]:
    """The ids of requests that are loaded from now on."""
    loads: list[str] = []
    real = lmcache_engine.load

    def load(adapter: Any, request_id: str, **rest: Any) -> set[int]:
        loads.append(request_id)
        return real(adapter, request_id, **rest)

    patch.setattr(lmcache_engine, "load", load)
    return loads


@contextmanager
def held_back() -> Iterator[threading.Event]:
    """Loads do not end before the event is set, or the block ends."""
    goes_on, real = threading.Event(), lmcache_engine.load

    def load(*arguments: Any, **others: Any) -> set[int]:
        assert goes_on.wait(20)
        return real(*arguments, **others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lmcache_engine, "load", load)
        try:
            yield goes_on
        finally:
            goes_on.set()


def record_saves(patch: pytest.MonkeyPatch) -> set[int]:
    """The places in their texts of the tokens that are saved from now on."""
    places: set[int] = set()
    real = LMCacheEngine.store

    def store(self: Any, tokens: list[int], mask: torch.Tensor, **arguments: Any) -> None:
        places.update(mask.nonzero().flatten().tolist())
        real(self, tokens, mask=mask, **arguments)

    patch.setattr(LMCacheEngine, "store", store)
    return places


def held(engine: SimulatedEngine) -> list[Any]:
    """What LMCache may not evict."""
    lmcache = engine.adapters[1].lmcache_engine
    memory = lmcache.storage_manager.storage_backends["LocalCPUBackend"]
    return [*lmcache.lookup_pins, *(each for each in memory.hot_cache.values() if each.is_pinned)]


def test_a_whole_prefix_is_loaded(engine: SimulatedEngine) -> None:
    prompt = stored(engine, 1)
    assert engine.ask("loaded", prompt) == continuation(prompt, 4)
    assert engine.hits == 6 * CHUNK
    engine.hits = 0
    assert engine.ask("in vLLM", prompt) == continuation(prompt, 4)
    assert engine.hits == engine.failed == 0
    assert engine.errors() == {}
    assert not held(engine)


def test_a_prompt_that_is_all_there_has_its_last_token_computed(engine: SimulatedEngine) -> None:
    prompt = stored(engine, 2)[: 6 * CHUNK]
    assert engine.ask("whole", prompt) == continuation(prompt, 4)
    assert engine.hits == 6 * CHUNK - 1


@pytest.mark.parametrize("kept", [0, 1, 5])
def test_what_is_not_loaded_is_computed_and_stored_again(
    engine: SimulatedEngine, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = stored(engine, 10 + kept)
    longer = [*prompt, *(number * 13 % 250 for number in range(3 * CHUNK))]
    with monkeypatch.context() as patch:
        lose_chunks(patch, lambda _: kept)
        saved = record_saves(patch)
        engine.add(f"cut {kept}", longer)
        while not engine.outcome.finished_recving:
            engine.step()
        table = engine.scheduler.kv_cache_manager.get_block_ids(f"cut {kept}")[0]
        first, end = kept * CHUNK // BLOCK, 6 * CHUNK // BLOCK
        assert engine.outcome.invalid_block_ids == set(table[first:end])
        engine.run()
    assert engine.said[f"cut {kept}"] == continuation(longer, 4)
    assert saved == set(range(kept * CHUNK, 9 * CHUNK))
    assert not engine.worker.wrong
    assert engine.errors() == {}
    assert not held(engine)
    engine.forget_local()
    engine.hits = 0
    assert engine.ask(f"whole {kept}", longer) == continuation(longer, 4)
    assert engine.hits == len(longer) // CHUNK * CHUNK


def test_a_prefix_is_loaded_once_for_all_who_ask_at_a_time(
    engine: SimulatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = stored(engine, 20)
    with monkeypatch.context() as patch:
        loads = count_loads(patch)
        for number in range(4):
            engine.add(f"shared {number}", [*prompt, number])
        engine.run()
        assert loads == ["shared 0"]
    for number in range(4):
        assert engine.said[f"shared {number}"] == continuation([*prompt, number], 4)


def test_others_are_computed_when_a_shared_load_fails(
    engine: SimulatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = stored(engine, 21)
    with monkeypatch.context() as patch:
        lose_chunks(patch, lambda _: 2)
        loads = count_loads(patch)
        for number in range(4):
            engine.add(f"failed {number}", [*prompt, number])
        engine.run()
        assert sorted(set(loads)) == sorted(loads)  # never twice for the same request
    for number in range(4):
        assert engine.said[f"failed {number}"] == continuation([*prompt, number], 4)
    assert not engine.worker.wrong


def test_a_request_that_is_aborted_while_it_loads_leaves_nothing(
    engine: SimulatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = stored(engine, 22)
    pool = engine.scheduler.kv_cache_manager.block_pool
    free = pool.get_num_free_blocks()
    with monkeypatch.context() as patch:
        lose_chunks(patch, lambda _: 1)
        engine.add("aborted", prompt)
        while engine.is_busy():
            engine.step(while_it_runs=lambda: engine.abort("aborted"))
    assert engine.said["aborted"] == []
    assert pool.get_num_free_blocks() == free
    assert not held(engine)
    assert engine.ask("after it", prompt) == continuation(prompt, 4)
    assert not engine.worker.wrong


def test_others_are_computed_while_a_load_takes_its_time(engine: SimulatedEngine) -> None:
    prompt = stored(engine, 24)
    with held_back() as goes_on:
        engine.add("loads long", prompt)
        other = [25, *PROMPT]
        engine.add("computed meanwhile", other)
        began = time.monotonic()
        while "computed meanwhile" not in engine.finished:
            engine.step()
        assert time.monotonic() - began < 5
        assert engine.said["loads long"] == []
        goes_on.set()
        engine.run()
    assert engine.said["computed meanwhile"] == continuation(other, 4)
    assert engine.said["loads long"] == continuation(prompt, 4)
    assert engine.hits == 6 * CHUNK
    assert engine.errors() == {}


def test_loads_overlap(engine: SimulatedEngine) -> None:
    prompts = {f"overlaps {number}": stored(engine, 26 + number) for number in range(2)}
    together, real = threading.Barrier(2), lmcache_engine.load

    def load(*arguments: Any, **others: Any) -> set[int]:
        together.wait(20)
        return real(*arguments, **others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lmcache_engine, "load", load)
        for name, prompt in prompts.items():
            engine.add(name, prompt)
        engine.run(steps=100_000)
    for name, prompt in prompts.items():
        assert engine.said[name] == continuation(prompt, 4)


def test_a_request_that_is_aborted_keeps_its_blocks_until_its_load_is_over(
    engine: SimulatedEngine,
) -> None:
    prompt = stored(engine, 28)
    pool = engine.scheduler.kv_cache_manager.block_pool
    free = pool.get_num_free_blocks()
    with held_back() as goes_on:
        engine.add("aborted early", prompt)
        until(lambda: engine.step() or engine.parts[1]._results.queue._running)
        engine.abort("aborted early")
        for number in range(3):
            other = [70 + number, *PROMPT]
            assert engine_answer(engine, f"beside it {number}", other) == continuation(other, 4)
        assert pool.get_num_free_blocks() == free - len(prompt) // BLOCK
        goes_on.set()
        engine.run(steps=100_000)
    assert pool.get_num_free_blocks() == free
    assert engine.said["aborted early"] == []
    assert not held(engine)
    assert not engine.worker.wrong


def engine_answer(engine: SimulatedEngine, name: str, prompt: list[int]) -> list[int]:
    """The answer to a request, while another one never ends."""
    engine.add(name, prompt)
    until(lambda: engine.step() or name in engine.finished)
    return engine.said[name]


def test_a_load_that_has_not_begun_ends_with_its_request(engine: SimulatedEngine) -> None:
    prompts = [stored(engine, 80 + number) for number in range(LOADS + 1)]
    queue = engine.parts[1]._results.queue
    with held_back() as goes_on, pytest.MonkeyPatch.context() as patch:
        loads = count_loads(patch)
        for number, prompt in enumerate(prompts[:-1]):
            engine.add(f"fills {number}", prompt[: 2 * CHUNK])
        until(lambda: engine.step() or queue._running == LOADS)
        engine.add("queued", prompts[-1])
        until(lambda: engine.step() or queue._waiting)
        engine.abort("queued")
        until(lambda: engine.step() or not queue._waiting)
        goes_on.set()
        engine.run(steps=100_000)
        assert sorted(loads) == [f"fills {number}" for number in range(LOADS)]
    assert not held(engine)


def test_tenants_are_apart_in_what_is_loaded(engine: SimulatedEngine) -> None:
    prompt = [23, *PROMPT]
    engine.ask("of one", prompt, cache_salt="one")
    engine.forget_local()
    engine.hits = engine.failed = 0
    assert engine.ask("of two", prompt, cache_salt="two") == continuation(prompt, 4)
    assert engine.hits == 0
    engine.forget_local()
    assert engine.ask("of one again", prompt, cache_salt="one") == continuation(prompt, 4)
    assert engine.hits == 6 * CHUNK
    assert engine.ask("of nobody", prompt) == continuation(prompt, 4)
    assert engine.hits == 6 * CHUNK
    assert engine.failed == 0


def test_requests_that_hold_blocks_go_before_one_that_needs_them(engine: SimulatedEngine) -> None:
    prompts = {f"holds {number}": stored(engine, 30 + number) for number in range(4)}
    for name, prompt in prompts.items():
        engine.add(name, prompt)
    while not engine.outcome.finished_recving:
        engine.step()
    # It came first, and waited for something else, as for its grammar to be compiled.
    large = engine.request("large", [number * 17 % 250 for number in range(35 * BLOCK)])
    engine.said["large"] = []
    engine.scheduler.add_request(large)
    engine.scheduler.waiting.remove_requests([large])
    # vLLM 0.32 has one queue in its place, and one for those that hold blocks.
    queue = getattr(engine.scheduler, "skipped_waiting", engine.scheduler.waiting)
    queue.prepend_request(large)
    engine.run()
    prompts["large"] = list(large.prompt_token_ids)
    for name, prompt in prompts.items():
        assert engine.said[name] == continuation(prompt, 4)


def test_nobody_passes_for_ever_one_that_waits(engine: SimulatedEngine) -> None:
    prompts = [stored(engine, 40 + number) for number in range(12)]
    engine.add("loads", prompts[0])
    engine.add("waits", [*prompts[0], *prompts[0]])
    for number, prompt in enumerate(prompts[1:]):
        engine.add(f"comes {number}", prompt, 1)
        engine.step()
    assert engine.said["waits"]
    engine.run()


def test_blending_which_is_not_exact_is_refused(
    engine: SimulatedEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    scheduler, adapter = engine.scheduler, engine.adapters[0]
    monkeypatch.setenv("LMCACHE_CONFIG_FILE", str(tmp_path / "lmcache.yaml"))
    monkeypatch.setattr(adapter.config, "enable_blending", True)
    # LMCache's sockets cannot be there twice in a process.
    monkeypatch.setattr(
        LMCacheConnectorV1,
        "__init__",
        lambda self, *_: setattr(self, "_lmcache_engine", adapter),
    )
    connector = KServeLMCacheConnector(
        scheduler.vllm_config, KVConnectorRole.SCHEDULER, scheduler.kv_cache_config
    )
    assert "enable_blending is set" in connector.scheduler.containment.failure
    assert connector.role == KVConnectorRole.SCHEDULER
    REPORTER.add("scheduler", engine.parts[0].state)


def test_the_remote_tier_learns_how_fast_a_prefill_is(
    engine: SimulatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int | None] = []

    class PrefillRate:
        """A stand-in that keeps what it is told."""

        tokens_per_second = None

        def end_step(self) -> None:
            steps.append(None)

        def begin_step(self, tokens: int) -> None:
            steps.append(tokens)

    prompt = stored(engine, 60)
    monkeypatch.setattr(engine.parts[1], "_prefill", PrefillRate())
    engine.ask("paced", prompt, count=2)
    assert steps[0::2] == [None] * (len(steps) // 2)
    assert [tokens for tokens in steps if tokens][:2] == [len(prompt) - 6 * CHUNK, 1]


def test_a_step_without_lmcache_is_one_step_for_the_prefill_rate(
    engine: SimulatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    monkeypatch.setattr(engine.parts[1]._prefill, "begin_step", steps.append)
    inject(monkeypatch, KVConnectorBase_V1, "bind_connector_metadata")
    engine.ask("65", [65, *PROMPT])
    assert sum(steps) == len(PROMPT) + 1 + 3  # the prompt, and the answer but its last token


def prompt_tokens() -> dict[str, float]:
    """Of this process's metrics, by source."""
    return {
        source: metric("prompt_tokens_total", source=source).value()
        for source in (COMPUTED, PREFIX_CACHE, *TIERS)
    }


def test_tokens_are_counted_by_where_they_came_from(engine: SimulatedEngine) -> None:
    prompt = stored(engine, 61)
    before = prompt_tokens()
    engine.ask("from the tier", prompt)
    engine.ask("from vLLM", prompt)
    engine.forget_local()
    with pytest.MonkeyPatch.context() as patch:
        lose_chunks(patch, lambda _: 2)
        engine.ask("in part", prompt)
    now = prompt_tokens()
    counted = {source: now[source] - before.get(source, 0) for source in now}
    counted = {source: count for source, count in counted.items() if count}
    whole, rest = 6 * CHUNK, len(prompt) - 6 * CHUNK
    local = len(prompt) // BLOCK * BLOCK  # vLLM's own cache has whole blocks of it
    assert counted == {
        "local_cpu": whole + 2 * CHUNK,
        PREFIX_CACHE: local,
        COMPUTED: rest + (len(prompt) - local) + len(prompt) - 2 * CHUNK,
    }


def test_vllms_stats_bring_every_count_of_a_request_to_the_server(engine: SimulatedEngine) -> None:
    prompt = stored(engine, 62)
    engine.ask("from the tier", prompt)
    (snapshot,) = engine.snapshots.values()  # one process
    received = {
        label: value
        for name, (label, *_), value in (each for each in snapshot["metrics"] if each[1])
        if name == "prompt_tokens_total" and value
    }
    assert received == {source: count for source, count in prompt_tokens().items() if count}
    assert snapshot["worker"]["failure"] == snapshot["scheduler"]["failure"] == ""


def test_the_handshake_brings_the_workers_configuration(engine: SimulatedEngine) -> None:
    report = engine.worker.connector.get_handshake_metadata()
    (first,) = pickle.loads(pickle.dumps(report)).snapshots.values()  # noqa: S301 (our own)
    assert first["config"]["chunk_size"] == CHUNK
    assert first["worker"]["rank"] == 0
    engine.scheduler.connector.set_xfer_handshake_metadata_pp_aware({(0, 0): report})


def test_a_cache_of_another_shape_than_announced_turns_offloading_off(
    engine: SimulatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    connector = engine.worker.connector
    # LMCache, which has begun its services already, must not begin them again.
    monkeypatch.setattr(LMCacheConnectorV1, "register_kv_caches", lambda *_: None)
    connector.register_kv_caches(
        {name: cache[:, :1] for name, cache in engine.worker.cache.items()}
    )
    assert (
        "are not the 64 blocks of 2048 bytes that vLLM's configuration says"
        in connector.worker.state()["failure"]
    )
    assert engine.errors() == {"register_kv_caches": 1}
    connector.worker.containment.failure = ""
