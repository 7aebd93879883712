"""The counters of a tier, for its report and for Prometheus."""

from __future__ import annotations

import threading

from kserve_lmcache.metrics.registry import Counter
from kserve_lmcache.metrics.table import TABLE, metric

_TOTAL = "_total"
_NAMES = [
    row.name.removesuffix(_TOTAL)
    for row in TABLE
    if row.kind is Counter and row.labels == ("tier",)
]


class Counters:
    """Counts by name. Safe to use from several threads.

    Args:
        tier: the tier's name in metrics.
    """

    def __init__(self, tier: str) -> None:
        self._tier = tier
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(_NAMES, 0)
        for name in _NAMES:  # Prometheus shows 0 for what has not happened yet
            metric(name + _TOTAL, tier=tier)

    def add(self, name: str, count: int = 1) -> None:
        """Adds ``count``.

        Raises:
            KeyError: there is no counter of this name.
        """
        with self._lock:
            self._counts[name] += count
        metric(name + _TOTAL, tier=self._tier).inc(count)

    def __getitem__(self, name: str) -> int:
        with self._lock:
            return self._counts[name]

    def snapshot(self) -> dict[str, int]:
        """Returns all counts."""
        with self._lock:
            return dict(self._counts)
