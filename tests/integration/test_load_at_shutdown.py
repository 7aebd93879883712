"""An engine that ends in the middle of a load waits for it, and LMCache ends after it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from kserve_lmcache.compat.lmcache import engine as lmcache_engine
from kserve_lmcache.connector import worker
from kserve_lmcache.connector.inprocess.stock import StockConnector
from tests.support.simulated_engine import CHUNK, simulated
from tests.support.waiting import until

PROMPT = [number * 7 % 250 for number in range(6 * CHUNK + 9)]


@pytest.mark.parametrize("ends", [True, False], ids=["a load that ends", "one that hangs"])
def test_an_engine_ends_after_its_loads(
    ends: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    events: list[str] = []
    goes_on, real, stop = threading.Event(), lmcache_engine.load, StockConnector.stop

    def load(*arguments: Any, **others: Any) -> set[int]:
        assert goes_on.wait(60)
        missing = real(*arguments, **others) if ends else set()
        events.append("loaded")
        return missing

    def stop_lmcache(connector: StockConnector) -> None:
        events.append("stopped")
        stop(connector)

    with simulated(tmp_path) as engine:
        engine.ask("stored", PROMPT)
        engine.forget_local()
        monkeypatch.setattr(lmcache_engine, "load", load)
        monkeypatch.setattr(StockConnector, "stop", stop_lmcache)
        if not ends:
            monkeypatch.setattr(worker, "_SHUTDOWN_WAIT", 0.2)
        queue = engine.parts[1]._results.queue
        engine.add("loads", PROMPT)
        until(lambda: engine.step() or queue._running)
        engine.add("queued", [1, *PROMPT[1:]])
        ended = threading.Thread(target=engine.parts[1].shutdown)
        ended.start()
        if ends:
            ended.join(0.5)
            assert ended.is_alive()
            assert events == []
            goes_on.set()
        ended.join(20)
        assert not ended.is_alive()
        goes_on.set()
    assert events[0] == ("loaded" if ends else "stopped")
    assert "stopped" in events
