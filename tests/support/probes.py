"""The probes of a store that is given up, counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kserve_lmcache.tiers.guard.breaker import Breaker
from tests.support.waiting import until


class Probes:
    """How often the tiers that are made from now on ask their stores for a sign of life.

    Args:
        monkeypatch: makes the tiers' breakers count, since no report does.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._begun = 0
        self._ended = 0
        monkeypatch.setattr("kserve_lmcache.tiers.guard.tier.Breaker", self._breaker)

    def wait_for(self, count: int) -> None:
        """Wait until ``count`` that have not begun yet have ended, well or not."""
        wanted = self._begun + count
        until(lambda: self._ended >= wanted, seconds=60)

    def _breaker(self, probe: Callable[[], None], *others: Any) -> Breaker:
        def counted() -> None:
            self._begun += 1
            try:
                probe()
            finally:
                self._ended += 1

        return Breaker(counted, *others)
