"""Instruments count, from several threads, and a change is seen."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest

from kserve_lmcache.metrics import table
from kserve_lmcache.metrics.registry import Counter, Gauge, Histogram, Registry
from kserve_lmcache.metrics.table import TABLE, metric


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A registry of the test, behind ``metric``."""
    metric.cache_clear()
    registry = Registry()
    monkeypatch.setattr(table, "REGISTRY", registry)
    yield registry
    metric.cache_clear()


def test_values_begin_at_0_and_change(registry: Registry) -> None:
    metric("prompt_tokens_total", source="remote").inc(100)
    metric("prompt_tokens_total", source="remote").inc()
    metric("prompt_tokens_total", source="disk")
    metric("local_cpu_used_bytes").set(7)
    metric("local_cpu_used_bytes").set(5)
    for seconds in (0.001, 0.0011, 9.0):
        metric("load_seconds", tier="remote").observe(seconds)
    samples = json.loads(json.dumps(registry.samples()))
    assert samples[:3] == [
        ["prompt_tokens_total", ["remote"], 101],
        ["prompt_tokens_total", ["disk"], 0],
        ["local_cpu_used_bytes", [], 5],
    ]
    name, labels, (total, *counts) = samples[3]
    assert (name, labels, total) == ("load_seconds", ["remote"], pytest.approx(9.0021))
    assert (counts[:3], counts[-1], sum(counts)) == ([1, 1, 0], 1, 3)


def test_only_a_change_makes_a_new_version(registry: Registry) -> None:
    used, loads = metric("local_cpu_used_bytes"), metric("loads_total", tier="disk")
    for change in (lambda: used.set(1), lambda: loads.inc(), lambda: metric("up", tier="disk")):
        before = registry.version
        change()
        assert registry.version > before
    before = registry.version
    used.set(1)
    loads.inc(0)
    metric("up", tier="disk")
    assert registry.version == before


def test_threads_lose_nothing(registry: Registry) -> None:
    def count() -> None:
        for _ in range(2000):
            metric("loads_total", tier="disk").inc()
            metric("load_seconds", tier="disk").observe(0.5)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert metric("loads_total", tier="disk").value() == 16_000
    assert metric("load_seconds", tier="disk").value()[0] == 8_000
    assert sum(metric("load_seconds", tier="disk").value()[1:]) == 16_000


def test_a_metric_that_the_table_does_not_have_is_refused(registry: Registry) -> None:
    with pytest.raises(KeyError):
        metric("unknown_total")
    for labels in ({}, {"tier": "disk"}, {"source": "disk", "tier": "disk"}):
        with pytest.raises(KeyError, match="has the labels"):
            metric("prompt_tokens_total", **labels)


def test_names_and_helps_of_the_table_are_of_one_kind() -> None:
    names = [row.name for row in TABLE]
    assert len(set(names)) == len(names)
    for row in TABLE:
        assert row.kind in (Counter, Gauge, Histogram)
        assert row.help.endswith(".")
        assert row.name.endswith(("_total", "_bytes", "_seconds", "_info", "state", "up")), row.name
        assert not row.name.startswith(table.PREFIX)
