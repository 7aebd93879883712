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

from kserve_lmcache.connector import KServeLMCacheConnector, lmcache_engine
from kserve_lmcache.connector.error_containment import Faults
from kserve_lmcache.connector.metadata import Load, Step
from tests.support.lmcache_faults import Injected, inject
from tests.support.simulated_engine import BLOCK, CHUNK, SimulatedEngine, continuation, simulated

PROMPT = [number * 7 % 250 for number in range(6 * CHUNK + 9)]
LONGER = PROMPT + [number * 11 % 250 for number in range(3 * CHUNK)]
BLOCKS = tuple(range(6 * CHUNK // BLOCK))
STEP = Step(LMCacheConnectorMetadata(), [Load("waits", BLOCKS)])

SCHEDULER, WORKER = "scheduler", "worker"
# Every call of vLLM's to the connector: in which process, its arguments, and what it must answer.
CALLS: dict[str, tuple[str, tuple[Any, ...], Any]] = {
    "bind_connector_metadata": (WORKER, (STEP,), None),
    "bind_gpu_block_pool": (SCHEDULER, (None,), None),
    "build_connector_meta": (SCHEDULER, (SchedulerOutput.make_empty(),), Step(None, [], set())),
    "build_connector_worker_meta": (WORKER, (), None),
    "build_kv_connector_stats": (WORKER, (), None),
    "build_prom_metrics": (WORKER, (None, {}, [], {}), None),
    "clear_connector_metadata": (WORKER, (), None),
    "get_block_ids_with_load_errors": (WORKER, (), set(BLOCKS)),
    "get_finished": (WORKER, (set(),), (None, {"waits"})),
    "get_finished_count": (WORKER, (), None),
    "get_handshake_metadata": (WORKER, (), None),
    "get_kv_connector_kv_cache_events": (WORKER, (), None),
    "get_kv_connector_stats": (WORKER, (), None),
    "get_num_new_matched_tokens": (SCHEDULER, ("REQUEST", 0), (0, False)),
    "get_required_kvcache_layout": (WORKER, (None,), None),
    "handle_preemptions": (WORKER, (STEP,), None),
    "has_connector_metadata": (WORKER, (), False),
    "has_pending_push_work": (SCHEDULER, (), False),
    "on_new_request": (SCHEDULER, ("REQUEST",), None),
    "prefer_cross_layer_blocks": (WORKER, (), False),
    "register_cross_layers_kv_cache": (WORKER, (None, None), None),
    "register_kv_caches": (WORKER, ({},), None),
    "request_finished": (SCHEDULER, ("REQUEST", []), (False, None)),
    "requires_kv_delivery": (SCHEDULER, (), False),
    "requires_piecewise_for_cudagraph": (WORKER, ({},), False),
    "reset_cache": (SCHEDULER, (), None),
    "role": (WORKER, (), None),
    "save_kv_layer": (WORKER, ("layer", None, None), None),
    "set_host_xfer_buffer_ops": (WORKER, (None,), None),
    "set_xfer_handshake_metadata": (SCHEDULER, ({},), None),
    "set_xfer_handshake_metadata_pp_aware": (SCHEDULER, ({},), None),
    "shutdown": (WORKER, (), None),
    "start_load_kv": (WORKER, (None,), None),
    "supports_divergent_local_hybrid_hits": (SCHEDULER, (), False),
    "take_events": (SCHEDULER, (), ()),
    "update_connector_output": (SCHEDULER, (KVConnectorOutput(),), None),
    "update_state_after_alloc": (SCHEDULER, ("REQUEST", KVCacheBlocks(([],)), 0), None),
    "wait_for_layer_load": (WORKER, ("layer",), None),
    "wait_for_save": (WORKER, (), None),
}
SURFACE = sorted(name for name in dir(KVConnectorBase_V1) if not name.startswith("_"))

# What of it an engine calls while it runs.
RUNNING = sorted(
    name
    for name, (_, _, _) in CALLS.items()
    if inspect.isfunction(inspect.getattr_static(KVConnectorBase_V1, name))
    and not name.startswith(("register_", "set_", "shutdown", "reset_", "bind_gpu"))
    and name not in ("get_finished_count", "get_handshake_metadata")
)
INTERNALS = [
    (lmcache_engine, "expect"),
    (lmcache_engine, "forget"),
    (lmcache_engine, "load"),
    (lmcache_engine, "release"),
    (lmcache_engine, "save_nothing"),
    (lmcache_engine, "source"),
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
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    """Those of the test alone."""
    faults = Faults()
    monkeypatch.setattr(KServeLMCacheConnector, "faults", faults)
    return faults


def owner(name: str) -> type:
    """The class that ours inherits a call from."""
    return LMCacheConnectorV1 if name in vars(LMCacheConnectorV1) else KVConnectorBase_V1


def test_every_call_that_vllm_knows_is_known_here() -> None:
    assert sorted(CALLS) == SURFACE


@pytest.mark.parametrize("name", CALLS)
def test_an_exception_is_answered_counted_and_logged_once(
    engine: SimulatedEngine,
    faults: Faults,
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
    connector.bind_connector_metadata(STEP)
    caplog.clear()
    kind = inspect.getattr_static(KVConnectorBase_V1, name)

    def fail(*_: Any, **__: Any) -> None:
        raise Injected(name)

    with monkeypatch.context() as patch:
        if isinstance(kind, property):
            patch.setattr(owner(name), name, property(fail))
            answers = [getattr(connector, name), getattr(connector, name)]
        else:
            if name == "shutdown":
                patch.setattr(lmcache_engine, "stop", fail)
            failing = classmethod(fail) if isinstance(kind, classmethod) else fail
            patch.setattr(owner(name), name, failing)
            answers = [getattr(connector, name)(*call) for call in calls]
    counted = faults.counts()
    if name == "register_kv_caches":
        # The server has to know.
        assert connector.report()["failure"] == "Injected: register_kv_caches"
        assert connector.report()["faults"] == {name: 1}
        connector.failure = ""
        counted = {name: 2}
    assert answers == [expected, expected]
    assert counted == {name: 2}
    logged = [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]
    assert len(logged) == 1
    assert logged[0].startswith(f"LMCache failed in {name};")
    assert f"Injected: {name}" in logged[0]
    assert "Traceback" in logged[0]
    connector.clear_connector_metadata()
    for request in requests:
        engine.scheduler.connector.request_finished(request, [])


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("where", "name"),
    [*((owner(name), name) for name in RUNNING), *INTERNALS],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_answers_are_right_whatever_fails(
    engine: SimulatedEngine,
    where: Any,
    name: str,
    late: bool,
    monkeypatch: pytest.MonkeyPatch,
    faults: Faults,
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
    assert sum(faults.counts().values()) > 0 or name in QUIET


# Called only after another fault.
QUIET = ("save_nothing", "expect", "forget")


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (LMCacheConnectorV1, "update_state_after_alloc"),
        (lmcache_engine, "source"),
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
    adapter = engine.scheduler.connector._lmcache_engine
    for kept in (adapter.load_specs, adapter._request_trackers, adapter._unfinished_requests):
        assert f"{name} loaded" not in kept


def test_a_request_that_lmcache_lost_count_of_is_hidden_from_it(
    engine: SimulatedEngine, monkeypatch: pytest.MonkeyPatch, faults: Faults
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
    assert set(faults.counts()) == {"build_connector_meta"}
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
        (KVConnectorBase_V1, "has_connector_metadata"),
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
    engine.worker.connector.failure = "no LMCache"
    try:
        assert engine.ask("promised", prompt) == continuation(prompt, 4)
        assert engine.worker.connector.report()["failure"] == "no LMCache"
        assert engine.worker.connector.report()["config"] == {}
        engine.forget_local()
        engine.scheduler.connector.failure = "no LMCache"
        engine.hits = 0
        assert engine.ask("unpromised", prompt) == continuation(prompt, 4)
        assert engine.hits == 0
    finally:
        engine.worker.connector.failure = engine.scheduler.connector.failure = ""
    engine.forget_local()
    assert engine.ask("after", prompt) == continuation(prompt, 4)
    assert not engine.worker.wrong
