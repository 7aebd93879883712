"""The table of corrupt keys, which is bounded."""

from __future__ import annotations

import pytest

from kserve_lmcache.tiers.guard import corrupt_keys as module
from kserve_lmcache.tiers.guard.corrupt_keys import CorruptKeys


def test_a_key_stays_until_it_is_written_again() -> None:
    corrupt = CorruptKeys()
    corrupt.add("a")
    corrupt.add("b")
    assert "a" in corrupt
    assert "c" not in corrupt
    corrupt.discard(["a", "c"])
    assert "a" not in corrupt
    assert "b" in corrupt


def test_the_oldest_keys_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_KEYS", 3)
    corrupt = CorruptKeys()
    for key in "abcde":
        corrupt.add(key)
    assert [key for key in "abcde" if key in corrupt] == ["c", "d", "e"]
