"""Keys whose values are wrong are remembered, and not more of them than a table may hold."""

from __future__ import annotations

import pytest

from kserve_lmcache.tiers.guard import corrupt_keys as module
from kserve_lmcache.tiers.guard.corrupt_keys import CorruptKeys


def test_is_remembered_until_it_is_written_anew() -> None:
    spoiled = CorruptKeys()
    spoiled.add("a")
    spoiled.add("b")
    assert "a" in spoiled
    assert "c" not in spoiled
    spoiled.discard(["a", "c"])
    assert "a" not in spoiled
    assert "b" in spoiled


def test_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 3)
    spoiled = CorruptKeys()
    for key in "abcde":
        spoiled.add(key)
    assert [key for key in "abcde" if key in spoiled] == ["c", "d", "e"]
