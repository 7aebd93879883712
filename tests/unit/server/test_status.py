"""The status: ratios and quantiles of what was counted, the state that follows, the page."""

from __future__ import annotations

import asyncio
import importlib.resources
import math
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry, Histogram

from kserve_lmcache.metrics.table import STATES, metric
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
        history.add_event(number, f"event {number}")
    events = history.events()
    assert [event["text"] for event in events] == [f"event {29 - number}" for number in range(20)]


def worker(rank: int, failure: str = "", **tiers: Any) -> dict[str, Any]:
    """The snapshot of a worker."""
    state = {"rank": rank, "failure": failure, "tiers": tiers}
    return {str(rank): {"sequence": 0, "metrics": [], "worker": state}}


class Engine:
    """A stand-in that says what the test says."""

    def __init__(self) -> None:
        self.off: str | None = None
        self.alive = True
        self.found = worker(0, remote={"up": True, "name": "redis://r"})

    def snapshots(self) -> Any:
        return self.found

    def is_alive(self) -> bool:
        return self.alive

    def off_reason(self) -> str | None:
        return self.off


def state_metric() -> list[str]:
    return [state for state in STATES if metric("offload_state", state=state).value()]


def test_the_state_is_one_of_four_and_says_why() -> None:
    engine = Engine()
    watch = Monitor(engine)
    look = lambda: asyncio.run(watch.look())  # noqa: E731
    look()
    assert (watch.state, state_metric()) == ("starting", ["starting"])
    engine.off = ""
    look()
    assert (watch.state, watch.reason, state_metric()) == ("on", "", ["on"])
    down = {"up": False, "reason": "lookup: no answer", "name": "redis://r"}
    engine.found = {**engine.found, **worker(1, remote=down)}
    look()
    assert (watch.state, watch.reason) == ("degraded", "remote: lookup: no answer")
    assert state_metric() == ["degraded"]
    engine.found = {**engine.found, **worker(2, "no LMCache")}
    look()
    assert watch.reason == "worker 2: no LMCache; remote: lookup: no answer"
    engine.alive = False
    look()
    assert (watch.state, watch.reason) == ("degraded", "the engine has ended")
    engine.off = "--offload is off"
    look()
    assert (watch.state, watch.reason, state_metric()) == ("off", engine.off, ["off"])
    texts = [event["text"] for event in watch.history.events()]
    assert "redis://r is not asked for now: lookup: no answer" in texts
    assert texts[0] == "Offloading is off: --offload is off"
    assert texts[-1] == "Offloading is starting: the engine starts"


def test_a_mistake_in_it_is_logged_and_does_not_end_it(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine()
    watch = Monitor(engine)
    engine.found = {"0": {}}

    async def run() -> None:
        task = asyncio.create_task(watch.run())
        await asyncio.sleep(0.1)
        assert not task.done()
        task.cancel()

    asyncio.run(run())
    assert "The state of offloading is unknown" in caplog.text


def test_a_sample_has_the_metrics_of_both_sources() -> None:
    vllm = CollectorRegistry()
    name, labels = "vllm:time_to_first_token_seconds", ("model_name", "engine")
    first = Histogram(name, "h", labels, registry=vllm, buckets=(0.1, 1.0))
    for engine, seconds in (("0", 0.05), ("0", 0.5), ("1", 0.5), ("1", 5.0)):
        first.labels("model", engine).observe(seconds)
    loads = [0.0] * 13
    loads[5] = 2  # up to 50 ms
    totals = {
        "prompt_tokens_total": {("remote",): 200, ("computed",): 7},
        "lookup_hits_total": {("remote",): 4},
        "load_seconds": {("remote",): [0.06, *loads]},
        "local_cpu_used_bytes": {(): 11},
    }
    found = samples.read(1.0, totals, vllm)
    assert found.prompt_tokens == {"remote": 200, "computed": 7}
    assert (found.hits, found.misses) == ({"remote": 4}, {})
    assert (found.load_seconds["remote"][0.025], found.load_seconds["remote"][0.05]) == (0, 2)
    assert found.first_token_seconds == {0.1: 1, 1.0: 3, INF: 4}
    assert found.plain == {"local_cpu_used_bytes": 11}


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
