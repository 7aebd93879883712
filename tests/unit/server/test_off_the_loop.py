"""Scrapes and the status page go on in threads: the loop streams answers meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from kserve_lmcache.server.http.metrics_endpoint import MetricsEndpoint
from kserve_lmcache.server.status import monitor, routes
from tests.unit.server.test_status import Engine

SLOW = 0.6  # seconds


def longest_stop(call: Callable[[], Awaitable[Any]]) -> float:
    """The longest time in seconds that the loop did nothing else while the call ran."""

    async def measure() -> float:
        task, longest, before = asyncio.ensure_future(call()), 0.0, time.monotonic()
        while not task.done():
            await asyncio.sleep(0.01)
            now = time.monotonic()
            longest, before = max(longest, now - before), now
        await task
        return longest

    return asyncio.run(measure())


def slowly(**values: Any) -> dict[str, Any]:
    time.sleep(SLOW)
    return values


@pytest.fixture
def _metrics(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))


@pytest.mark.usefixtures("_metrics")
def test_a_scrape() -> None:
    assert longest_stop(MetricsEndpoint(slowly).answer) < SLOW / 2


@pytest.mark.usefixtures("_metrics")
def test_scrapes_are_made_one_at_a_time() -> None:
    running, most = 0, 0

    def totals() -> dict[str, Any]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.05)
        running -= 1
        return {}

    async def several() -> None:
        endpoint = MetricsEndpoint(totals)
        await asyncio.gather(*(endpoint.answer() for _ in range(5)))

    asyncio.run(several())
    assert most == 1


def test_the_status() -> None:
    app = FastAPI()
    routes.register(app, lambda: slowly(state="on"))

    async def ask() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await client.get(routes.PATH)).json() == {"state": "on"}

    assert longest_stop(ask) < SLOW / 2


def test_what_the_monitor_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, add_up = [], monitor.add_up

    def recorded(*args: Any) -> Any:
        threads.append(threading.current_thread())
        return add_up(*args)

    monkeypatch.setattr(monitor, "add_up", recorded)
    asyncio.run(monitor.Monitor(Engine()).look())
    assert threads
    assert threading.main_thread() not in threads
