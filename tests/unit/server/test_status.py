"""The status: ratios and quantiles of what was counted, the state that follows, the page."""

from __future__ import annotations

import asyncio
import importlib.resources
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from kserve_lmcache.metrics.table import PREFIX, STATES, TABLE, metric
from kserve_lmcache.server.status import routes, samples
from kserve_lmcache.server.status.history import History
from kserve_lmcache.server.status.monitor import Monitor
from kserve_lmcache.server.status.samples import Sample, hit_ratio, quantiles, tier_hit_ratio

INF = math.inf


def test_the_ratio_is_of_all_tokens_that_came_since() -> None:
    before = Sample(0, {"computed": 100, "remote": 50})
    now = Sample(5, {"computed": 200, "prefix_cache": 100, "remote": 150, "local_cpu": 100})
    assert hit_ratio(now, before) == pytest.approx(200 / 400)
    assert hit_ratio(now, now) is None


def test_a_tiers_ratio_is_of_the_chunks_that_it_was_asked_for() -> None:
    before = Sample(0, hits={"remote": 10}, misses={"remote": 10})
    now = Sample(5, hits={"remote": 13, "local_cpu": 1}, misses={"remote": 11})
    assert tier_hit_ratio(now, before, "remote") == pytest.approx(0.75)
    assert tier_hit_ratio(now, before, "local_cpu") == 1
    assert tier_hit_ratio(now, before, "disk") is None


def test_quantiles_are_those_of_prometheus() -> None:
    """Linear inside of a bucket; what is beyond the last bound is taken for the bound."""
    none = dict.fromkeys((0.1, 1.0, INF), 0.0)
    found = quantiles({0.1: 50.0, 1.0: 98.0, INF: 100.0}, none)
    assert found["p50"] == pytest.approx(0.1)
    assert found["p90"] == pytest.approx(0.1 + 0.9 * 40 / 48)
    assert found["p99"] == 1.0
    assert quantiles(none, none)["p50"] is None
    assert quantiles({}, {})["p50"] is None


def test_windows_are_as_long_as_they_say() -> None:
    history = History()
    for number in range(0, 4000, 5):
        # All hits in the last minute, none before.
        hits = max(0, number - 3935)
        history.add(Sample(number, {"remote": hits, "computed": number - hits}))
    found = history.hit_ratios()
    assert found["1m"] == pytest.approx(1.0)
    assert found["5m"] == pytest.approx(0.2)
    assert found["60m"] == pytest.approx(60 / 3600)
    curve = history.curve()
    assert len(curve) == 120
    assert curve[-1]["hit_ratio"] == 1
    assert curve[0]["hit_ratio"] == 0


def test_the_last_twenty_events() -> None:
    history = History()
    for number in range(30):
        history.happened(number, f"event {number}")
    events = history.events()
    assert [event["text"] for event in events] == [f"event {29 - number}" for number in range(20)]


class Engine:
    """A stand-in whose workers report what the test says."""

    def __init__(self) -> None:
        self.off: str | None = None
        self.reports: Any = [
            {"failure": "", "tiers": {"remote": {"up": True, "name": "redis://r"}}}
        ]

    async def report(self) -> Any:
        if isinstance(self.reports, Exception):
            raise self.reports
        return self.reports

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> Monitor:
        monkeypatch.setattr(samples, "read", Sample)
        return Monitor(self.report, lambda: self.off)


def state_metric() -> list[str]:
    return [state for state in STATES if metric("offload_state", state=state)._value.get()]


def test_the_state_is_one_of_four_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    watch = engine.watch(monkeypatch)
    look = lambda: asyncio.run(watch.look())  # noqa: E731
    look()
    assert (watch.state, state_metric()) == ("starting", ["starting"])
    engine.off = ""
    look()
    assert (watch.state, watch.reason, state_metric()) == ("on", "", ["on"])
    down = {"up": False, "reason": "lookup: no answer", "name": "redis://r"}
    engine.reports = [*engine.reports, {"failure": "", "tiers": {"remote": down}}]
    look()
    assert (watch.state, watch.reason) == ("degraded", "remote: lookup: no answer")
    assert state_metric() == ["degraded"]
    engine.reports = RuntimeError("dead")
    look()
    assert "the workers do not answer: RuntimeError" in watch.reason
    engine.off = "--offload is off"
    look()
    assert (watch.state, watch.reason, state_metric()) == ("off", engine.off, ["off"])
    texts = [event["text"] for event in watch.history.events()]
    assert "redis://r is not asked for now: lookup: no answer" in texts
    assert texts[0] == "Offloading is off: --offload is off"
    assert texts[-1] == "Offloading is starting: the engine starts"


def test_a_mistake_in_it_is_logged_and_does_not_end_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine()
    watch = engine.watch(monkeypatch)
    monkeypatch.setattr(samples, "read", lambda now: 1 / 0)

    async def run() -> None:
        task = asyncio.create_task(watch.run())
        await asyncio.sleep(0.1)
        assert not task.done()
        task.cancel()

    asyncio.run(run())
    assert "The state of offloading could not be told" in caplog.text


def test_a_browser_gets_the_page_and_others_the_document() -> None:
    app = FastAPI()
    routes.register(app, lambda: {"state": "on"})
    client = TestClient(app)
    document = client.get("/offload")
    assert document.json() == {"state": "on"}
    assert document.headers["cache-control"] == "no-store"
    page = client.get("/offload", headers={"accept": "text/html,*/*"})
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_the_page_fetches_nothing_from_elsewhere() -> None:
    page = importlib.resources.files(routes.__package__).joinpath("page.html").read_text()
    assert "src=" not in page
    assert "href=" not in page
    assert "url(" not in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "style=" not in page  # the policy has no place for it


def test_processes_counts_are_added_up(tmp_path: Path) -> None:
    """Two processes count; a third reads both."""
    count = (
        "from kserve_lmcache.metrics.table import metric\n"
        "metric('prompt_tokens_total', source='remote').inc(100)\n"
        "metric('lookup_hits_total', tier='remote').inc(2)\n"
        "metric('load_seconds', tier='remote').observe(0.03)\n"
        "metric('queue_bytes', tier='remote').set(7)\n"
        "metric('local_cpu_used_bytes').set(11)\n"
    )
    read = (
        "from kserve_lmcache.server.status.samples import read\n"
        "found = read(1.0)\n"
        "print(dict(found.prompt_tokens), dict(found.hits), found.load_seconds['remote'][0.05],\n"
        "      found.load_seconds['remote'][0.025])\n"
    )
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for script in (count, count, read):
        ran = subprocess.run(
            [sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True
        )
    assert ran.stdout == "{'remote': 200.0} {'remote': 4.0} 2.0 0.0\n"


def test_names_are_of_one_kind() -> None:
    names = [row.name for row in TABLE]
    assert len(set(names)) == len(names)
    for row in TABLE:
        assert row.help.endswith(".")
        assert row.name.endswith(("_total", "_bytes", "_seconds", "_info", "state", "up")), row.name
        assert not row.name.startswith(PREFIX)
