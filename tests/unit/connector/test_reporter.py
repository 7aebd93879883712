"""A snapshot is delivered when something has changed, once, and only then."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kserve_lmcache.connector.reporter import _server_directory
from kserve_lmcache.connector.stats import SnapshotReceiver, SnapshotStats
from kserve_lmcache.metrics import reporter as module
from kserve_lmcache.metrics import table
from kserve_lmcache.metrics.registry import Registry
from kserve_lmcache.metrics.reporter import Reporter
from kserve_lmcache.metrics.snapshots import RECEIVED, read_files, this_process
from kserve_lmcache.metrics.table import metric
from tests.support.waiting import until

ME = this_process()


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    metric.cache_clear()
    registry = Registry()
    monkeypatch.setattr(table, "REGISTRY", registry)
    monkeypatch.setattr(module, "REGISTRY", registry)
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.01)
    yield
    metric.cache_clear()


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The server's."""
    directory = tmp_path / "server"
    directory.mkdir()
    monkeypatch.setenv("LMCACHE_CONFIG_FILE", str(directory / "lmcache.yaml"))
    return directory


@pytest.fixture
def reporter() -> Iterator[Reporter]:
    """A reporter whose thread ends with the test."""
    reporter = Reporter(_server_directory)
    yield reporter
    for role in ("scheduler", "worker"):
        reporter.remove(role)
    if reporter._thread is not None:
        reporter._thread.join(5)
        assert not reporter._thread.is_alive()


class Worker:
    """A role whose state the test changes."""

    def __init__(self) -> None:
        self.failure = ""

    def state(self) -> dict[str, Any]:
        return {"rank": 0, "failure": self.failure, "tiers": {}}


def written(directory: Path) -> int:
    """The number of the snapshot in the file; -1 without a file."""
    found = read_files(directory)
    return int(found[ME]["sequence"]) if ME in found else -1


def at_rest(directory: Path) -> int:
    """The number of the snapshot after which nothing is written for thirty looks.

    A thread that another test left behind may count something first.
    """

    def rests() -> bool:
        before = written(directory)
        time.sleep(0.3)
        return written(directory) == before

    until(rests)
    return written(directory)


def test_a_step_delivers_what_has_changed(reporter: Reporter) -> None:
    reporter.add("worker", Worker().state)
    metric("loads_total", tier="disk").inc()
    first = reporter.take_changes()
    assert first is not None
    assert first[ME]["metrics"] == [["loads_total", ["disk"], 1]]
    assert first[ME]["worker"]["failure"] == ""
    assert json.dumps(first)
    assert reporter.take_changes() is None
    metric("loads_total", tier="disk").inc()
    second = reporter.take_changes()
    assert second is not None
    assert second[ME]["sequence"] > first[ME]["sequence"]
    assert second[ME]["metrics"] == [["loads_total", ["disk"], 2]]


def test_what_changes_between_steps_is_in_the_file_and_an_idle_process_writes_nothing(
    reporter: Reporter, directory: Path
) -> None:
    worker = Worker()
    reporter.add("worker", worker.state)
    until(lambda: written(directory) >= 0)
    for change in (
        lambda: metric("chunks_written_total", tier="remote").inc(),
        lambda: setattr(worker, "failure", "the state alone"),
    ):
        idle = at_rest(directory)
        change()
        until(lambda idle=idle: written(directory) > idle)  # type: ignore[misc]
    assert read_files(directory)[ME]["worker"]["failure"] == "the state alone"


def test_what_a_step_has_delivered_is_not_written(
    reporter: Reporter, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.2)
    reporter.add("worker", Worker().state)
    until(lambda: written(directory) >= 0)
    for _ in range(5):
        metric("loads_total", tier="disk").inc()
        assert reporter.take_changes() is not None
    before = written(directory)
    time.sleep(1.5)  # the state is looked at as well
    assert written(directory) == before


def test_a_process_without_the_servers_directory_does_without_a_file(
    reporter: Reporter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("LMCACHE_CONFIG_FILE", raising=False)
    reporter.add("worker", Worker().state)
    assert reporter.write() is False
    monkeypatch.setenv("LMCACHE_CONFIG_FILE", str(tmp_path / "of another machine" / "lmcache.yaml"))
    reporter.add("worker", Worker().state)
    thread = reporter._thread
    assert thread is not None
    thread.join(5)
    assert not thread.is_alive()
    metric("loads_total", tier="disk").inc()
    assert reporter.take_changes() is not None


def test_a_full_disk_ends_nothing(
    reporter: Reporter, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_file", full)
        reporter.add("worker", Worker().state)
        time.sleep(0.1)
        assert written(directory) == -1
    until(lambda: written(directory) >= 0)


def test_the_first_snapshots_of_workers_are_in_the_schedulers_file(
    reporter: Reporter, directory: Path
) -> None:
    """Those of another machine have no file here."""
    reporter.add("scheduler", lambda: {"failure": ""})
    worker = {"rank": 3, "failure": "no LMCache", "tiers": {}}
    for process in ("node-1/7", "node-2/7"):
        reporter.add_others({process: {"sequence": 0, "metrics": [], "worker": worker}})
    found = read_files(directory)
    assert set(found) == {ME, "node-1/7", "node-2/7"}
    assert found["node-2/7"]["worker"]["failure"] == "no LMCache"
    assert found[ME]["scheduler"] == {"failure": ""}


def test_the_first_snapshot_has_the_configuration_that_later_ones_keep(reporter: Reporter) -> None:
    reporter.add("worker", Worker().state)
    first = reporter.first({"chunk_size": 64})
    assert first[ME]["config"] == {"chunk_size": 64}
    metric("loads_total", tier="disk").inc()
    later = reporter.take_changes()
    assert later is not None
    assert "config" not in later[ME]


def test_a_worker_in_the_schedulers_process_keeps_its_configuration(
    reporter: Reporter, directory: Path
) -> None:
    """As on one accelerator, where vLLM starts no process for the worker."""
    reporter.add("worker", Worker().state)
    reporter.add("scheduler", lambda: {"failure": ""})
    reporter.add_others(reporter.first({"chunk_size": 64}))
    metric("loads_total", tier="disk").inc()
    assert reporter.write()
    (found,) = read_files(directory).values()
    assert found["config"] == {"chunk_size": 64}
    assert found["metrics"] == [["loads_total", ["disk"], 1]]
    assert {"worker", "scheduler"} <= set(found)


def test_stats_of_several_processes_become_one() -> None:
    def stats(process: str, sequence: int) -> SnapshotStats:
        return SnapshotStats({process: {"sequence": sequence, "metrics": []}})

    both = stats("a", 1).aggregate(stats("b", 0)).aggregate(stats("a", 0))
    assert {name: each["sequence"] for name, each in both.data.items()} == {"a": 1, "b": 0}
    assert not both.is_empty()
    assert both.reduce() == {}
    both.reset()
    assert both.is_empty()


def test_what_is_received_is_kept_and_nonsense_raises_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    receiver = SnapshotReceiver.__new__(SnapshotReceiver)
    RECEIVED.clear()
    receiver.observe({"a": {"sequence": 0, "metrics": []}}, 1)
    receiver.observe({"b": None}, 1)
    assert RECEIVED.all() == {"a": {"sequence": 0, "metrics": []}}
    assert "unusable" in caplog.text
    RECEIVED.clear()
