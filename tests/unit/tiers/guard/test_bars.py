"""Barred chunks are not taken while they are deleted, and shortly after."""

from __future__ import annotations

import pytest

from kserve_lmcache.tiers.guard import bars
from kserve_lmcache.tiers.guard.bars import Bars


def test_a_bar_ends_some_time_after(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(bars.time, "monotonic", lambda: now)
    barred = Bars()
    assert "a" not in barred
    with barred.up({"a"}.__contains__, lambda: 5):
        with barred.up({"b"}.__contains__, lambda: 0):
            now = 1000.0
            assert all(key in barred for key in "ab")
            assert "c" not in barred
        assert "a" in barred
        assert "b" not in barred
    now = 1004.0
    assert "a" in barred
    now = 1006.0
    assert "a" not in barred


def test_a_bar_is_lifted_after_an_error() -> None:
    barred = Bars()
    with pytest.raises(ValueError, match="x"), barred.up(lambda key: True, lambda: 0):
        raise ValueError("x")
    assert "a" not in barred
