"""What a server says of its offloading, in its metrics, as JSON, and in a browser."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, sync_playwright
from prometheus_client.parser import text_string_to_metric_families

from kserve_lmcache.metrics.table import PREFIX, TABLE
from kserve_lmcache.server.status.history import PERIOD
from tests.packaging.manifests import MONITORING, alert_groups
from tests.support import models
from tests.support.options import option
from tests.support.otlp import Collector, collector
from tests.support.prometheus import prometheus
from tests.support.server import Server, engine_environment, long_prompt, running
from tests.support.stores import Store, redis_process
from tests.support.waiting import until

CHUNK = 256
TOKEN_BYTES = 3 * 2 * 192 * 4  # of the KV of 3 layers of SmolLM2 in float32
PASSWORD = "test-password-61ce"
CHROMIUM = "/usr/bin/chromium"
# Where the pictures of the page are kept, to be looked at.
PICTURES = option("--pictures")
PHONE = {"width": 375, "height": 812}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with redis_process(tmp_path_factory.mktemp("redis"), password=PASSWORD) as store:
        yield store


@pytest.fixture(scope="module")
def traces() -> Iterator[Collector]:
    with collector() as traces:
        yield traces


@pytest.fixture(scope="module")
def server(
    store: Store, traces: Collector, logs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """After a prompt was asked three times: computed, and out of vLLM's own cache."""
    environ = engine_environment(
        LMCACHE_REMOTE_URL=store.url,
        LMCACHE_REMOTE_PASSWORD=PASSWORD,
        LMCACHE_MAX_LOCAL_CPU_SIZE="0.2",
        # On a busy machine a load may take longer than the prefill of so small a model.
        LMCACHE_REMOTE_LOOKUP_TIMEOUT="5",
        # As on a machine whose administrator gives the server a core.
        VLLM_CPU_OMP_THREADS_BIND=str(min(os.sched_getaffinity(0))),
    )
    # 4.6 KB a token: room for a few prompts in vLLM's own cache.
    small = (
        "--kv-cache-memory-bytes=24M",
        f"--otlp-traces-endpoint=http://127.0.0.1:{traces.port}",
    )
    model = (f"--model_id={models.first_layers(tmp_path_factory.mktemp('model') / 'model', 3)}",)
    with running(logs / "server.log", *small, environ=environ, model=model) as server:
        prompt = long_prompt("status", words=300)
        for _ in range(3):
            server.chat(prompt)
        yield server


def scrape(server: Server) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Values by name and labels."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text):
        for sample in family.samples:
            values = found.setdefault(sample.name, {})
            key = tuple(sorted(sample.labels.items()))
            assert key not in values, f"{sample.name} {key} is there twice"
            values[key] = sample.value
    return found


def value(found: dict[str, Any], name: str, **labels: str) -> float:
    return float(found[PREFIX + name][tuple(sorted(labels.items()))])


def status(server: Server) -> dict[str, Any]:
    answer = httpx.get(f"{server.url}/offload")
    assert answer.status_code == 200
    assert PASSWORD not in answer.text
    document: dict[str, Any] = answer.json()
    return document


def test_one_scrape_says_where_tokens_came_from(server: Server) -> None:
    found = scrape(server)
    (asked,) = found["vllm:prompt_tokens_total"].values()
    tokens = {dict(key)["source"]: n for key, n in found[f"{PREFIX}prompt_tokens_total"].items()}
    assert sum(tokens.values()) == asked
    assert tokens["prefix_cache"] > 2 * CHUNK  # vLLM keeps its own
    assert tokens["computed"] > 2 * CHUNK
    assert value(found, "lookups_total", tier="local_cpu") >= 1
    assert value(found, "chunks_written_total", tier="remote") >= 2
    assert value(found, "written_bytes_total", tier="remote") > 2 * CHUNK * TOKEN_BYTES
    assert value(found, "local_cpu_used_bytes") > 2 * CHUNK * TOKEN_BYTES
    assert value(found, "local_cpu_capacity_bytes") == pytest.approx(0.2 * 2**30, abs=2)
    assert value(found, "up", tier="remote") == 1
    # LMCache's, vLLM's and KServe's own stand beside ours.
    assert "lmcache:num_stored_tokens_total" in found
    assert "vllm:time_to_first_token_seconds_count" in found
    assert "process_resident_memory_bytes" in found


def test_what_vllm_has_evicted_comes_from_a_tier(server: Server) -> None:
    before = scrape(server)
    prompt = long_prompt("evicted", words=300)
    server.chat(prompt)
    for number in range(12):  # vLLM's own cache is full of others then
        server.chat(long_prompt(f"filler {number}", words=300), max_tokens=1)
    server.chat(prompt)
    now = scrape(server)
    gained = {
        tier: sum(
            n - before[f"{PREFIX}prompt_tokens_total"].get(key, 0)
            for key, n in now[f"{PREFIX}prompt_tokens_total"].items()
            if dict(key)["source"] == tier
        )
        for tier in ("local_cpu", "remote")
    }
    assert sum(gained.values()) >= 2 * CHUNK
    assert value(now, "loads_total", tier="local_cpu") + value(now, "loads_total", tier="remote")


def test_every_metric_of_the_table_has_its_type(server: Server) -> None:
    text = httpx.get(f"{server.url}/metrics").text
    families = {each.name: each for each in text_string_to_metric_families(text)}
    missing = set()
    for row in TABLE:
        family = families.get(PREFIX + row.name.removesuffix("_total"))
        if family is None:
            missing.add(row.name)
        else:
            assert family.type == row.kind.__name__.lower(), row.name
            assert family.documentation == row.help or family.documentation.startswith("Multi")
    # Its label is the call that failed.
    assert missing == {"connector_exceptions_total"}
    ours = {name for name in families if name.startswith(PREFIX)}
    assert ours <= {PREFIX + row.name.removesuffix("_total") for row in TABLE}


def test_every_query_of_the_dashboard_finds_something(server: Server, tmp_path: Path) -> None:
    dashboard = json.loads((MONITORING / "kserve-lmcache.json").read_text())
    queries = [each["expr"] for panel in dashboard["panels"] for each in panel.get("targets", ())]
    assert len(queries) > 15
    for variable, value in (("$namespace", ".*"), ("$service", ".*"), ("$__rate_interval", "1m")):
        queries = [query.replace(variable, value) for query in queries]
    prompts = itertools.cycle((*range(12), 0))  # vLLM's own cache holds the last few
    with prometheus(tmp_path, server.url.removeprefix("http://"), alert_groups()) as scraping:
        until(lambda: scraping.values("up") == [1], 20, pause=0.2)

        def all_find() -> bool:
            """A rate wants samples before and after: requests go on until all are there."""
            server.chat(long_prompt(f"seen {next(prompts)}", words=300), max_tokens=1)
            return all(scraping.values(query) for query in queries)

        until(all_find, 60, pause=0.2)
        (share,) = scraping.values(queries[1])
        assert 0 < share < 1
        rules = [
            rule for group in scraping.get("/api/v1/rules")["groups"] for rule in group["rules"]
        ]
        assert {(rule["health"], rule.get("lastError", "")) for rule in rules} == {("ok", "")}
        assert not [rule for rule in rules if rule.get("alerts")]


def test_the_trace_of_a_request_shows_lookup_load_and_store(
    server: Server, traces: Collector
) -> None:
    cold, warm, parent = "1" * 32, "2" * 32, "3" * 16

    def ask(trace: str) -> None:
        header = {"traceparent": f"00-{trace}-{parent}-01"}
        server.chat(long_prompt("traced", words=300), extra_headers=header)

    ask(cold)
    for number in range(12):  # vLLM's own cache is full of others then
        server.chat(long_prompt(f"untraced {number}", words=300), max_tokens=1)
    ask(warm)
    lookup, store, load = (f"kserve_lmcache.{name}" for name in ("lookup", "store", "load"))
    first = traces.wait_for(cold, {lookup, store, "llm_request"})
    again = traces.wait_for(warm, {lookup, load, "llm_request"})
    assert load not in first
    assert first[lookup]["kserve_lmcache.found_tokens"] == 0
    assert first[lookup]["kserve_lmcache.prompt_tokens"] > 2 * CHUNK
    assert first[store]["kserve_lmcache.tokens"] >= 2 * CHUNK
    loaded = again[load]["kserve_lmcache.tokens"]
    assert 2 * CHUNK - 16 <= loaded <= again[lookup]["kserve_lmcache.found_tokens"]
    assert again[load]["kserve_lmcache.bytes"] == loaded * TOKEN_BYTES
    by_tier = (again[load][f"kserve_lmcache.tokens.{tier}"] for tier in ("local_cpu", "remote"))
    assert sum(by_tier) >= loaded
    for span in (first[lookup], first[store], again[lookup], again[load]):
        assert span["parent"] == parent
        assert 0 <= span["seconds"] < 60
    others = [each for each in traces.spans if each.trace_id.hex() not in (cold, warm)]
    assert not [each.name for each in others if each.name in (lookup, store, load)]


def test_an_idle_server_leaves_the_cores_to_others(server: Server) -> None:
    """A worker that is asked something, whatever it is, computes for a second."""
    (worker,) = (each for each in server.process.family() if "Worker" in each.name())
    until(lambda: worker.cpu_percent(0.5) < 20)  # after what the last test asked for
    before = worker.cpu_times()
    time.sleep(PERIOD + 1.5)
    after = worker.cpu_times()
    assert after.user + after.system - before.user - before.system < 0.5


def test_only_what_computes_is_bound_to_a_core(server: Server) -> None:
    """The threads of the tiers do not take turns with it while another core is idle."""
    (worker,) = (each for each in server.process.family() if "Worker" in each.name())
    everywhere = os.sched_getaffinity(server.process.pid)
    assert len(os.sched_getaffinity(worker.pid)) == 1
    free = [each for each in worker.threads() if os.sched_getaffinity(each.id) == everywhere]
    assert len(free) >= 8  # 9 with the local tier alone, and none that inherit the binding


def test_the_document_is_true(server: Server, store: Store) -> None:
    until(lambda: status(server)["state"] == "on", 20, pause=0.2)
    found = status(server)
    assert found["reason"] == ""
    assert [tier["name"] for tier in found["tiers"]] == ["local_cpu", "remote"]
    local, remote = found["tiers"]
    assert local["capacity_bytes"] == pytest.approx(0.2 * 2**30, abs=2)
    assert remote["up"]
    assert remote["place"] == store.url
    assert found["model"]["name"] == server.name
    assert {"version", "vllm", "lmcache", "torch", "kserve"} == set(found["versions"])
    url = next(each for each in found["configuration"] if each["key"] == "remote_url")
    assert url == {"key": "remote_url", "value": store.url, "source": "LMCACHE_REMOTE_URL"}
    until(lambda: status(server)["prompt_tokens"] != {}, 20, pause=0.2)
    metrics = scrape(server)
    for source, count in status(server)["prompt_tokens"].items():
        assert value(metrics, "prompt_tokens_total", source=source) == count


def test_a_store_that_goes_is_seen_and_one_that_comes_back(server: Server, store: Store) -> None:
    store.shut_down()
    until(
        lambda: status(server)["state"] == "degraded", 30, pause=0.2
    )  # although nobody asks for anything
    found = status(server)
    assert found["reason"].startswith("remote: ")
    assert found["tiers"][1]["breaker"] == "open"
    assert value(scrape(server), "offload_state", state="degraded") == 1
    store.start()
    until(lambda: status(server)["state"] == "on", 20, pause=0.2)
    texts = [event["text"] for event in status(server)["events"]]
    assert any("is not asked for now" in text for text in texts)
    assert "Offloading is on" in texts


@contextmanager
def opened(server: Server, **options: Any) -> Iterator[tuple[Page, list[str]]]:
    """The page in a browser, and what its console and its network said."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(**options).new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        requested: list[str] = []
        page.on("request", lambda request: requested.append(request.url))
        page.goto(f"{server.url}/offload")
        page.wait_for_selector("#tiers td")
        yield page, said
        assert set(requested) <= {f"{server.url}/offload", f"{server.url}/favicon.ico"}
        browser.close()


def at(document: Any, path: str) -> Any:
    for key in path.split("."):
        document = document[int(key)] if isinstance(document, list) else document[key]
    return document


def test_every_value_on_the_page_is_the_documents(server: Server) -> None:
    with opened(server) as (page, said):
        with page.expect_response(
            lambda response: "json" in response.headers["content-type"]
        ) as one:
            pass
        document = one.value.json()
        page.wait_for_timeout(100)
        shown = page.eval_on_selector_all(
            "[data-path]", "all => all.map(e => [e.dataset.path, e.dataset.value, e.textContent])"
        )
        assert len(shown) > 60
        for path, held, text in shown:
            assert json.loads(held) == at(document, path), path
            assert text
        assert said == []
        ratio = page.text_content('[data-path="hit_ratio.5m"]')
        assert ratio == f"{100 * document['hit_ratio']['5m']:.1f} %"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_by_day_and_by_night(server: Server, scheme: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    with opened(server, color_scheme=scheme, viewport=PHONE) as (page, said):
        page.screenshot(path=PICTURES / f"offload-phone-{scheme}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        page.set_viewport_size({"width": 1100, "height": 900})
        page.screenshot(path=PICTURES / f"offload-{scheme}.png", full_page=True)
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        levels = [int(part) for part in ground.strip("rgb()").split(",")]
        assert (max(levels) < 64) == (scheme == "dark")
        assert said == []


def test_all_of_it_is_reached_by_keyboard(server: Server) -> None:
    with opened(server) as (page, _):
        reached = []
        for _ in range(12):
            page.keyboard.press("Tab")
            reached.append(
                page.evaluate(
                    "document.activeElement.id || document.activeElement.ariaLabel"
                    " || document.activeElement.textContent"
                )
            )
        assert {"pause", "Tiers", "Model and versions", "Effective configuration"} <= set(reached)
        page.focus("#pause")
        page.keyboard.press("Enter")
        assert page.get_attribute("#pause", "aria-pressed") == "true"
        page.focus("summary")
        page.keyboard.press("Enter")
        assert page.is_visible("#configuration")
