"""The metrics of several processes are one, and Prometheus reads them."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kserve_lmcache.metrics import table, totals
from kserve_lmcache.metrics.registry import Registry
from kserve_lmcache.metrics.snapshots import this_process
from kserve_lmcache.metrics.table import PREFIX, TABLE
from kserve_lmcache.metrics.totals import TotalsCollector, add_up

ROWS = {row.name: row for row in TABLE}


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """An empty registry of this process."""
    registry = Registry()
    monkeypatch.setattr(totals, "REGISTRY", registry)
    return registry


def process(name: str, *counts: tuple[str, str, float], up: float = 1.0) -> dict[str, Any]:
    """The snapshot of a process that observes one load of 30 ms as well."""
    registry = Registry()
    for metric, label, count in counts:
        row = ROWS[metric]
        registry.instrument(row.kind, metric, (label,) if label else (), row.buckets).inc(count)  # type: ignore[attr-defined]
    loads = ROWS["load_seconds"]
    registry.instrument(loads.kind, "load_seconds", ("remote",), loads.buckets).observe(0.03)  # type: ignore[attr-defined]
    for gauge, value in (("up", up), ("queue_bytes", 7.0)):
        row = ROWS[gauge]
        registry.instrument(row.kind, gauge, ("remote",), row.buckets).set(value)  # type: ignore[attr-defined]
    return {name: {"sequence": 0, "metrics": registry.samples()}}


TWO = {
    **process("a", ("prompt_tokens_total", "remote", 100), ("lookup_hits_total", "remote", 2)),
    **process("b", ("prompt_tokens_total", "remote", 10), up=0.0),
}


def scrape(found: Any) -> dict[str, Any]:
    registry = CollectorRegistry()
    registry.register(TotalsCollector(lambda: found))
    text = generate_latest(registry).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_counts_are_added_up_and_gauges_by_their_mode() -> None:
    found = add_up(TWO, engine_is_alive=True)
    assert found["prompt_tokens_total"] == {("remote",): 110}
    assert found["lookup_hits_total"] == {("remote",): 2}
    assert found["queue_bytes"] == {("remote",): 14}
    assert found["up"] == {("remote",): 0}
    assert found["load_seconds"][("remote",)][0] == pytest.approx(0.06)
    assert sum(found["load_seconds"][("remote",)][1:]) == 2


def test_processes_that_have_ended_keep_their_counts_and_lose_their_gauges(own: Registry) -> None:
    state = ROWS["offload_state"]
    own.instrument(state.kind, state.name, ("on",), ()).set(1)  # type: ignore[attr-defined]
    found = add_up(TWO, engine_is_alive=False)
    assert found["prompt_tokens_total"] == {("remote",): 110}
    assert {"up", "queue_bytes"}.isdisjoint(found)
    assert found["offload_state"] == {("on",): 1}


def test_this_process_counts_once(own: Registry) -> None:
    row = ROWS["loads_total"]
    own.instrument(row.kind, row.name, ("disk",), ()).inc(3)  # type: ignore[attr-defined]
    mine = {this_process(): {"sequence": 0, "metrics": own.samples()}}
    assert add_up(mine, engine_is_alive=True)["loads_total"] == {("disk",): 3}


def test_prometheus_reads_every_kind() -> None:
    found = scrape(add_up(TWO, engine_is_alive=True))
    assert {name: family.type for name, family in found.items()} == {
        f"{PREFIX}prompt_tokens": "counter",
        f"{PREFIX}lookup_hits": "counter",
        f"{PREFIX}load_seconds": "histogram",
        f"{PREFIX}up": "gauge",
        f"{PREFIX}queue_bytes": "gauge",
    }
    for name, family in found.items():
        row = ROWS.get(name.removeprefix(PREFIX)) or ROWS[name.removeprefix(PREFIX) + "_total"]
        assert family.documentation == row.help
    loads = {
        (sample.name.removeprefix(f"{PREFIX}load_seconds"), sample.labels.get("le")): sample.value
        for sample in found[f"{PREFIX}load_seconds"].samples
    }
    assert (loads["_bucket", "0.025"], loads["_bucket", "0.05"]) == (0, 2)
    assert loads["_bucket", "+Inf"] == loads["_count", None] == 2
    assert loads["_sum", None] == pytest.approx(0.06)
    assert len(loads) == len(table._SECONDS) + 3
