"""An exception at any call of the connector ends neither the engine nor a request.

The connectors, LMCache and vLLM's scheduler are the real ones; the model is a formula
(:mod:`tests.support.simulated_engine`).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from lmcache.integration.vllm.vllm_v1_adapter import LMCacheConnectorMetadata
from lmcache.v1.cache_engine import LMCacheEngine
from lmcache.v1.storage_backend.storage_manager import StorageManager
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1
from vllm.distributed.kv_transfer.kv_connector.v1.lmcache_connector import LMCacheConnectorV1
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import KVConnectorOutput

from kserve_lmcache.compat.lmcache import engine as lmcache_engine
from kserve_lmcache.connector import KServeLMCacheConnector
from kserve_lmcache.connector.isolation import Isolation
from kserve_lmcache.connector.load_queue import LoadQueue
from kserve_lmcache.connector.metadata import ConnectorMetadata, Load
from tests.support.lmcache_faults import Injected, inject
from tests.support.simulated_engine import BLOCK, CHUNK, SimulatedEngine, continuation, simulated

PROMPT = [number * 7 % 250 for number in range(6 * CHUNK + 9)]
LONGER = PROMPT + [number * 11 % 250 for number in range(3 * CHUNK)]
BLOCKS = tuple(range(6 * CHUNK // BLOCK))
STEP = ConnectorMetadata(LMCacheConnectorMetadata(), [Load("waits", BLOCKS)])
WITHOUT_LMCACHE = ConnectorMetadata(None, [], set())

SCHEDULER, WORKER = "scheduler", "worker"
# Every call that reaches LMCache: in which process, its arguments, and what vLLM gets.
CALLS: dict[str, tuple[str, tuple[Any, ...], Any]] = {
    "bind_connector_metadata": (WORKER, (STEP,), None),
    "build_connector_meta": (SCHEDULER, (SchedulerOutput.make_empty(),), WITHOUT_LMCACHE),
    "clear_connector_metadata": (WORKER, (), None),
    "get_block_ids_with_load_errors": (WORKER, (), set(BLOCKS)),
    "get_finished": (WORKER, (set(),), (None, {"waits"})),
    "get_num_new_matched_tokens": (SCHEDULER, ("REQUEST", 0), (0, False)),
    "on_new_request": (SCHEDULER, ("REQUEST",), None),
    "register_kv_caches": (WORKER, ({},), None),
    "request_finished": (SCHEDULER, ("REQUEST", []), (False, None)),
    "save_kv_layer": (WORKER, ("layer", None, None), None),
    "shutdown": (WORKER, (), None),
    "start_load_kv": (WORKER, (None,), None),
    "update_connector_output": (SCHEDULER, (KVConnectorOutput(),), None),
    "update_state_after_alloc": (SCHEDULER, ("REQUEST", KVCacheBlocks(([],)), 0), None),
    "wait_for_layer_load": (WORKER, ("layer",), None),
    "wait_for_save": (WORKER, (), None),
}
# Other calls of ours: they carry snapshots, or do not reach LMCache.
WITHOUT = {
    "build_connector_worker_meta",
    "build_kv_connector_stats",
    "build_prom_metrics",
    "get_handshake_metadata",
    "get_kv_connector_stats",
    "has_connector_metadata",
    "requires_piecewise_for_cudagraph",
    "set_xfer_handshake_metadata_pp_aware",
}
# Calls that stay vLLM's own, in all supported versions and in 0.33. The reasons are in
# docs/design/vllm-versions.md.
INHERITED = {
    "bind_gpu_block_pool",
    "bind_kv_cache_manager",
    "finish_forward",
    "get_external_cache_hit_sources",
    "get_finished_count",
    "get_kv_connector_kv_cache_events",
    "get_loaded_kv_cache_group_ids",
    "get_mem_pool_context",
    "get_required_kvcache_layout",
    "get_transfer_results",
    "handle_preemptions",
    "has_pending_block_frees",
    "has_pending_push_work",
    "prefer_cross_layer_blocks",
    "register_cross_layers_kv_cache",
    "register_finished_partial_tail",
    "requires_kv_delivery",
    "reset_cache",
    "reset_capture_state",
    "restore_kv_caches",
    "role",
    "set_host_xfer_buffer_ops",
    "set_xfer_handshake_metadata",
    "supports_divergent_local_hybrid_hits",
    "supports_sleep_mode",
    "take_events",
    "unregister_kv_caches",
}
# LMCache's events are not used: docs/developers/events.md.
EVENTS = {"get_kv_connector_kv_cache_events", "take_events"}
SURFACE = {name for name in dir(KVConnectorBase_V1) if not name.startswith("_")}

# The calls of an engine that runs.
RUNNING = [name for name in CALLS if name not in ("register_kv_caches", "shutdown")]
INTERNALS = [
    (lmcache_engine, "forget"),
    (lmcache_engine, "found_tokens"),
    (lmcache_engine, "drop_saves"),
    (lmcache_engine, "load"),
    (lmcache_engine, "local_cpu_bytes"),
    (lmcache_engine, "set_cached_tokens"),
    (lmcache_engine, "unpin"),
    (LMCacheEngine, "retrieve"),
    (LMCacheEngine, "store"),
    (StorageManager, "batched_contains"),
]


@pytest.fixture(scope="module", params=[False, True], ids=["one step", "overlapping steps"])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimulatedEngine]:
    directory = tmp_path_factory.mktemp("model")
    with simulated(directory, async_scheduling=request.param) as engine:
        yield engine


@pytest.fixture(autouse=True)
def _no_errors(engine: SimulatedEngine) -> None:
    engine.forget_errors()


def owner(name: str) -> tuple[Any, str]:
    """Where a call of ours reaches LMCache, or what else may fail in it."""
    others = {"on_new_request": (Isolation, "mark"), "shutdown": (lmcache_engine, "stop")}
    inherited = LMCacheConnectorV1 if name in vars(LMCacheConnectorV1) else KVConnectorBase_V1
    return others.get(name, (inherited, name))


def test_every_other_call_is_vllms_own() -> None:
    assert set(CALLS) | WITHOUT <= SURFACE
    for name in SURFACE:
        ours, base = (
            inspect.getattr_static(each, name)
            for each in (KServeLMCacheConnector, KVConnectorBase_V1)
        )
        assert (ours is base) == (name not in set(CALLS) | WITHOUT), name


def undecided(surface: set[str]) -> set[str]:
    """The calls of which nobody has decided whether we need them."""
    return surface - set(CALLS) - WITHOUT - INHERITED


def test_a_call_that_a_new_vllm_adds_needs_a_decision() -> None:
    assert undecided(SURFACE) == set()
    assert undecided(SURFACE | {"a_new_call"}) == {"a_new_call"}


# build_prom_metrics hands on whatever it is given.
@pytest.mark.parametrize("name", sorted((set(CALLS) | WITHOUT) - {"build_prom_metrics"}))
def test_our_calls_take_what_vllms_take(name: str) -> None:
    theirs, ours = (
        inspect.signature(getattr(each, name)).parameters
        for each in (KVConnectorBase_V1, KServeLMCacheConnector)
    )
    assert list(ours) == list(theirs)


def test_every_call_of_vllms_lmcache_connector_is_ours_as_well() -> None:
    own = {name for name in vars(LMCacheConnectorV1) if not name.startswith("_")}
    assert own <= set(CALLS) | WITHOUT | EVENTS


@pytest.mark.parametrize("name", CALLS)
def test_an_exception_is_answered_counted_and_logged_once(
    engine: SimulatedEngine,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    process, arguments, expected = CALLS[name]
    connector = engine.scheduler.connector if process == SCHEDULER else engine.worker.connector
    engine.ask("REQUEST", PROMPT)
    # The first exception may hide a request from LMCache: each call has its own.
    requests = [engine.request(f"REQUEST {number}", PROMPT) for number in range(2)]
    calls = [
        tuple(request if each == "REQUEST" else each for each in arguments) for request in requests
    ]
    engine.worker.connector.bind_connector_metadata(STEP)
    caplog.clear()
    engine.forget_errors()

    def fail(*_: Any, **__: Any) -> None:
        raise Injected(name)

    with monkeypatch.context() as patch:
        patch.setattr(*owner(name), fail)
        patch.setattr(LoadQueue, "close", lambda *_: None)  # the engine goes on after "shutdown"
        answers = [getattr(connector, name)(*call) for call in calls]
    counted = engine.errors()
    if name == "register_kv_caches":
        # The server has to know.
        assert connector.worker.state()["failure"] == "Injected: register_kv_caches"
        assert counted == {name: 1}
        connector.worker.containment.failure = ""
        counted = {name: 2}
    assert answers == [expected, expected]
    assert counted == {name: 2}
    logged = [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]
    assert len(logged) == 1
    assert logged[0].startswith(f"LMCache failed in {name};")
    assert f"Injected: {name}" in logged[0]
    assert "Traceback" in logged[0]
    engine.worker.connector.bind_connector_metadata(WITHOUT_LMCACHE)
    engine.worker.connector.get_finished(set())  # the load that STEP asked for
    engine.worker.connector.clear_connector_metadata()
    for request in requests:
        engine.scheduler.connector.request_finished(request, [])


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("where", "name"),
    [*map(owner, RUNNING), *INTERNALS],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_answers_are_right_whatever_fails(
    engine: SimulatedEngine,
    where: Any,
    name: str,
    late: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = f"{name} {late} {where.__name__}"
    prompt = [len(key), *key.encode(), *PROMPT]
    longer = [*prompt, *LONGER[len(PROMPT) :]]
    assert engine.ask(f"{key} stored", prompt) == continuation(prompt, 4)
    engine.forget_local()
    with monkeypatch.context() as patch:
        inject(patch, where, name, late=lambda: late)
        for number in range(2):
            names = [f"{key} {number} {each}" for each in ("same", "longer", "same again")]
            for each, asked in zip(names, (prompt, longer, prompt), strict=True):
                engine.add(each, asked)
            engine.run()
            assert engine.said[names[0]] == engine.said[names[2]] == continuation(prompt, 4)
            assert engine.said[names[1]] == continuation(longer, 4)
            engine.forget_local()
    for asked in (prompt, longer):
        assert engine.ask(f"{key} then {len(asked)}", asked) == continuation(asked, 4)
        engine.forget_local()
    assert not engine.worker.wrong
    assert sum(engine.errors().values()) > 0 or name in QUIET


# Called only after another fault.
QUIET = ("drop_saves", "set_cached_tokens", "forget")


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (LMCacheConnectorV1, "update_state_after_alloc"),
        (lmcache_engine, "found_tokens"),
        (lmcache_engine, "load"),
        (LMCacheEngine, "retrieve"),
        (KVConnectorBase_V1, "bind_connector_metadata"),
        (LMCacheConnectorV1, "get_block_ids_with_load_errors"),
        (LMCacheConnectorV1, "get_finished"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_was_promised_is_settled_in_its_step(
    engine: SimulatedEngine, where: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = [1, len(name), *name.encode(), *PROMPT]
    engine.ask(f"{name} stored", prompt)
    engine.forget_local()
    engine.add(f"{name} loaded", prompt)
    with monkeypatch.context() as patch:
        inject(patch, where, name)
        while not engine.outcome.finished_recving:
            engine.step()
        promised = engine.scheduler.kv_cache_manager.get_block_ids(f"{name} loaded")[0]
        assert engine.outcome.finished_recving == {f"{name} loaded"}
        loaded_all_the_same = name in ("bind_connector_metadata", "get_finished") or (
            name == "get_block_ids_with_load_errors"
        )
        failed = set() if loaded_all_the_same else set(promised)
        assert engine.outcome.invalid_block_ids == failed
    engine.run()
    assert engine.said[f"{name} loaded"] == continuation(prompt, 4)
    assert not engine.worker.wrong
    engine.step()
    adapter, _ = engine.adapters
    for kept in (adapter.load_specs, adapter._request_trackers, adapter._unfinished_requests):
        assert f"{name} loaded" not in kept


def test_a_request_that_lmcache_lost_count_of_is_hidden_from_it(
    engine: SimulatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = [2, *PROMPT], [3, *PROMPT]
    engine.add("lost", first, 8)
    engine.step()
    with monkeypatch.context() as patch:
        # LMCache misses the blocks of one step, and would take the next ones for them.
        inject(patch, LMCacheConnectorV1, "build_connector_meta")
        engine.step()
    engine.add("other", second)
    engine.run()
    assert set(engine.errors()) == {"build_connector_meta"}
    engine.forget_local()
    engine.hits = 0
    assert engine.ask("lost again", first) == continuation(first, 4)
    lost = engine.hits
    engine.hits = 0
    assert engine.ask("other again", second) == continuation(second, 4)
    assert lost < engine.hits == len(second) // CHUNK * CHUNK


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (LMCacheConnectorV1, "save_kv_layer"),
        (LMCacheConnectorV1, "wait_for_save"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_a_save_that_fails_in_part_is_none(
    engine: SimulatedEngine, where: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = [5, len(name), *name.encode(), *PROMPT]
    with monkeypatch.context() as patch:
        calls = iter(range(1000))
        inject(patch, where, name, chance=lambda: next(calls) % 2 == 0)
        engine.ask(f"{name} not stored", prompt)
    engine.forget_local()
    engine.hits = 0
    assert engine.ask(f"{name} computed", prompt) == continuation(prompt, 4)
    assert engine.hits == 0


def test_a_worker_whose_lmcache_did_not_start_harms_nobody(engine: SimulatedEngine) -> None:
    prompt = [4, *PROMPT]
    engine.ask("stored", prompt)
    engine.forget_local()
    scheduler, worker = engine.parts
    worker.containment.failure = "no LMCache"
    try:
        assert engine.ask("promised", prompt) == continuation(prompt, 4)
        assert worker.state()["failure"] == "no LMCache"
        assert worker.effective_config() == {}
        engine.forget_local()
        scheduler.containment.failure = "no LMCache"
        engine.hits = 0
        assert engine.ask("unpromised", prompt) == continuation(prompt, 4)
        assert engine.hits == 0
    finally:
        worker.containment.failure = scheduler.containment.failure = ""
    engine.forget_local()
    assert engine.ask("after", prompt) == continuation(prompt, 4)
    assert not engine.worker.wrong
