"""Which requests are traced, and how often a lookup is exported."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from kserve_lmcache.connector import traces
from kserve_lmcache.connector.traces import Traces, span

HEADERS = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    spans: list[tuple[Any, ...]] = []
    monkeypatch.setattr(traces, "instrument_manual", lambda *values: spans.append(values))
    return spans


def test_only_requests_with_a_trace_are_traced(exported: list[tuple[Any, ...]]) -> None:
    known = Traces()
    for name, headers in (("a", HEADERS), ("b", None), ("c", {})):
        known.add(SimpleNamespace(request_id=name, trace_headers=headers))
    assert known.headers(["a", "b", "c", "d"]) == {"a": HEADERS}
    for name in "abcd":
        known.export_lookup(name, time.monotonic(), found_tokens=0)
        span("load", known.headers(name).get(name), time.monotonic())
    assert [name for name, *_ in exported] == ["kserve_lmcache.lookup", "kserve_lmcache.load"]
    known.forget("a")
    assert known.headers(["a"]) == {}


def test_a_lookup_in_every_step_is_told_once(exported: list[tuple[Any, ...]]) -> None:
    known, began = Traces(), time.monotonic() - 0.5
    known.add(SimpleNamespace(request_id="a", trace_headers=HEADERS))
    for _ in range(3):
        known.export_lookup("a", began, found_tokens=7)
    ((_, start, end, attributes, context),) = exported
    assert (end - start) / 1e9 == pytest.approx(0.5, abs=0.1)
    assert attributes == {"kserve_lmcache.found_tokens": 7}
    assert context is not None
