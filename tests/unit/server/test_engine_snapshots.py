"""What the server reads of the engine's snapshots: failures at the start, and live gauges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kserve_lmcache.config import engine_file
from kserve_lmcache.metrics import totals
from kserve_lmcache.metrics.registry import Registry
from kserve_lmcache.metrics.snapshots import RECEIVED, write_file
from tests.support.http import MockModel

CONFIG = {"chunk_size": 64}


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """The engine's file."""
    RECEIVED.clear()
    path = tmp_path / "lmcache.yaml"
    engine_file.write(CONFIG, None, path)
    yield path
    RECEIVED.clear()


@pytest.fixture
def model(path: Path) -> MockModel:
    """Of an engine with two workers."""
    model: Any = MockModel()
    configuration = SimpleNamespace(lmcache_values=dict)
    model.offload = SimpleNamespace(
        engine_file=path, configuration=configuration, cache_server=None
    )
    parallel = SimpleNamespace(tensor_parallel_size=2, pipeline_parallel_size=1)
    model.engine_config = SimpleNamespace(parallel_config=parallel)
    return model


def leave(
    path: Path,
    *ranks: int,
    failure: str = "",
    scheduler: str = "",
    config: Mapping[str, Any] = CONFIG,
) -> None:
    """The scheduler's file after the handshake."""
    found: dict[str, Any] = {
        "head/1": {"sequence": 0, "metrics": [], "scheduler": {"failure": scheduler}}
    }
    for rank in ranks:
        worker = {"rank": rank, "failure": failure, "tiers": {}, "moments": {"process": rank}}
        worker["proof"] = f"{rank} blocks came back"
        found[f"node/{rank}"] = {
            "sequence": 0,
            "metrics": [["queue_bytes", ["remote"], 7], ["loads_total", ["remote"], 1]],
            "worker": worker,
            "config": config,
        }
    write_file(path.parent, found)


def test_all_is_well(model: MockModel, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    leave(path, 1, 0)
    assert model._offload_failure(path) == ""
    assert model.worker_moments() == {"process": 0}
    assert "Check copy: ok, 0 blocks came back" in caplog.text


@pytest.mark.parametrize("ranks", [(), (0,)])
def test_a_worker_that_reports_nothing_is_a_failure(
    model: MockModel, path: Path, ranks: tuple[int, ...]
) -> None:
    leave(path, *ranks)
    assert f"only {len(ranks)} of 2 workers" in model._offload_failure(path)


def test_failures_of_all_processes_are_told_once(model: MockModel, path: Path) -> None:
    leave(path, 0, 1, failure="no engine", scheduler="no lookup client")
    assert model._offload_failure(path) == "no engine; no lookup client"


def test_another_configuration_than_asked_for_is_a_failure(model: MockModel, path: Path) -> None:
    leave(path, 0, 1, config={"chunk_size": 128})
    assert model._offload_failure(path) == "chunk_size is 128 where 64 was asked for"


def test_an_engine_that_ends_leaves_counters_and_no_gauges(
    model: MockModel, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(totals, "REGISTRY", Registry())  # without what other tests counted
    leave(path, 0, 1)
    model.started, model.engine_client = True, SimpleNamespace(errored=False)
    assert model.totals()["queue_bytes"] == {("remote",): 14}
    model.engine_client.errored = True
    assert "queue_bytes" not in model.totals()
    assert model.totals()["loads_total"] == {("remote",): 2}
