"""Exceptions are counted, logged once with their traceback, and replaced by a fallback."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from kserve_lmcache.connector.error_containment import ErrorContainment, contained


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def fail(text: str) -> Exception:
    try:
        raise ValueError(text)
    except ValueError as error:
        return error


def fail_elsewhere(text: str) -> Exception:
    try:
        raise ValueError(text)
    except ValueError as error:
        return error


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return found


def test_the_first_of_a_kind_has_its_trace(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    errors = ErrorContainment(clock)
    errors.record("load", fail("one"))
    (first,) = lines(caplog)
    assert first.startswith("LMCache failed in load;")
    assert "Traceback" in first
    assert "ValueError: one" in first
    for error in (fail_elsewhere("two"), KeyError("three")):
        errors.record("load", error)
        assert "\n" in lines(caplog)[0]
    errors.record("save", fail("four"))
    assert "\n" in lines(caplog)[0]
    assert errors.counts() == {"load": 3, "save": 1}


def test_later_ones_are_a_line_a_minute(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    errors = ErrorContainment(clock)
    for _ in range(50):
        errors.record("load", fail("same"))
    assert len(lines(caplog)) == 1
    clock.now = 61.0
    for _ in range(50):
        errors.record("load", fail("same"))
    assert lines(caplog) == ["LMCache failed in load again (51 times): ValueError('same')"]
    clock.now = 100.0
    errors.record("load", fail("same"))
    assert lines(caplog) == []
    assert errors.counts() == {"load": 101}


class Part:
    def __init__(self) -> None:
        self.containment = ErrorContainment()
        self.completed: list[Any] = []

    @contained(lambda self, work: self.completed.append(f"completed {work}"))
    def do(self, work: str) -> None:
        if work == "end":
            raise SystemExit
        raise RuntimeError(work)

    @contained(lambda self, by: -1.0)
    def divide(self, by: int) -> float:
        return 1 / by


def test_a_fallback_completes_the_work(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    part = Part()
    assert (part.divide(by=2), part.divide(0)) == (0.5, -1.0)
    part.do("this")
    assert part.completed == ["completed this"]
    assert part.containment.counts() == {"do": 1, "divide": 1}
    with pytest.raises(SystemExit):
        part.do("end")


def test_a_part_without_lmcache_calls_only_fallbacks(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    part = Part()
    part.containment.give_up("__init__", fail("no LMCache"))
    assert part.containment.failure == "ValueError: no LMCache"
    part.do("this")
    assert part.divide(2) == -1.0
    assert part.completed == ["completed this"]
    assert part.containment.counts() == {"__init__": 1}
