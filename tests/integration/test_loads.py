"""Requests are computed and shared on what was loaded, and never on what was to be.

The connectors, LMCache and vLLM's scheduler are the real ones; the model is a formula
(:mod:`tests.support.simulated_engine`).
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
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
from tests.support.lmcache_faults import inject, lose_chunks
from tests.support.simulated_engine import (
    BLOCK,
    CHUNK,
    SimulatedEngine,
    continuation,
    simulated,
)

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
    """What a step loads, before or after it computes, is not in the time that it computes."""
    steps: list[tuple[int, float]] = []

    class PrefillRate:
        """A stand-in that keeps what it is told."""

        tokens_per_second = None

        def end_step(self) -> None:
            self.is_in_step = False

        def begin_step(self, tokens: int) -> None:
            steps.append((tokens, 0.0))
            self.is_in_step = True

        def leave_out(self, seconds: float) -> None:
            assert self.is_in_step
            steps[-1] = (steps[-1][0], seconds)

    real = lmcache_engine.load

    def load(*arguments: Any, **others: Any) -> set[int]:
        time.sleep(0.2)
        return real(*arguments, **others)

    prompt = stored(engine, 60)
    monkeypatch.setattr(lmcache_engine, "load", load)
    monkeypatch.setattr(engine.parts[1], "_prefill", PrefillRate())
    engine.ask("paced", prompt, count=2)
    assert steps[0][0] == 0
    assert steps[0][1] >= 0.2
    assert [tokens for tokens, _ in steps if tokens][:2] == [len(prompt) - 6 * CHUNK, 1]
    assert all(left_out < 0.2 for _, left_out in steps[1:])


@pytest.mark.parametrize(("device", "count"), [("cpu", 0), ("cuda", 1)])
def test_a_step_that_loads_while_an_accelerator_computes_is_no_sample(
    engine: SimulatedEngine, monkeypatch: pytest.MonkeyPatch, device: str, count: int
) -> None:
    dropped: list[None] = []
    prompt = stored(engine, 63 + count)
    monkeypatch.setattr(engine.parts[1], "_device", device)
    monkeypatch.setattr(engine.parts[1]._prefill, "drop_step", lambda: dropped.append(None))
    engine.ask(f"on {device}", prompt)
    assert len(dropped) == count


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
    counted = {source: now[source] - count for source, count in before.items() if now[source]}
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
