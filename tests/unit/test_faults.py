"""Exceptions are counted, logged once with their trace, and answered."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from kserve_lmcache.connector.error_containment import Faults, contain_inherited, contained


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
    faults = Faults(clock)
    faults.record("load", fail("one"))
    (first,) = lines(caplog)
    assert first.startswith("LMCache failed in load;")
    assert "Traceback" in first
    assert "ValueError: one" in first
    for error in (fail_elsewhere("two"), KeyError("three")):
        faults.record("load", error)
        assert "\n" in lines(caplog)[0]
    faults.record("save", fail("four"))
    assert "\n" in lines(caplog)[0]
    assert faults.counts() == {"load": 3, "save": 1}


def test_later_ones_are_a_line_a_minute(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    faults = Faults(clock)
    for _ in range(50):
        faults.record("load", fail("same"))
    assert len(lines(caplog)) == 1
    clock.now = 61.0
    for _ in range(50):
        faults.record("load", fail("same"))
    assert lines(caplog) == ["LMCache failed in load again (51 times): ValueError('same')"]
    clock.now = 100.0
    faults.record("load", fail("same"))
    assert lines(caplog) == []
    assert faults.counts() == {"load": 101}


class Parent:
    @property
    def size(self) -> int:
        return 1 // self.divisor

    divisor = 0

    def divide(self, by: int) -> float:
        return 1 / by

    @classmethod
    def build(cls, by: int) -> float:
        return 1 / by


@contain_inherited({"size": 0, "divide": -1.0, "build": -2.0, "absent_in_this_version": None})
class Child(Parent):
    faults = Faults()

    def __init__(self) -> None:
        self.failure = ""
        self.done: list[Any] = []

    @contained(lambda self, what: self.done.append(f"undone {what}"))
    def do(self, what: str) -> None:
        if what == "end":
            raise SystemExit
        raise RuntimeError(what)


def test_inherited_methods_class_methods_and_properties_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    Child.faults = Faults()
    child = Child()
    assert child.divide(by=2) == 0.5
    assert Child.build(4) == 0.25
    assert (child.size, child.divide(0), Child.build(0)) == (0, -1.0, -2.0)
    assert Child.faults.counts() == {"size": 1, "divide": 1, "build": 1}
    child.divisor = 1
    assert child.size == 1
    assert not hasattr(child, "absent_in_this_version")


def test_an_answer_makes_good_what_was_left_undone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    Child.faults = Faults()
    child = Child()
    child.do("this")
    assert child.done == ["undone this"]
    assert Child.faults.counts() == {"do": 1}
    with pytest.raises(SystemExit):
        child.do("end")


def test_a_connector_that_did_not_start_only_answers() -> None:
    Child.faults = Faults()
    child = Child()
    child.failure = "no LMCache"
    child.do("this")
    child.divisor = 1
    assert (child.size, child.divide(2)) == (1, -1.0)
    assert child.done == ["undone this"]
    assert Child.faults.counts() == {}
