"""What happened in a tier, counted: in its report, and for Prometheus."""

from __future__ import annotations

import threading

from prometheus_client import Counter

from kserve_lmcache.metrics.table import TABLE, metric

_TOTAL = "_total"
# Every name, with its meaning.
NAMES = {
    row.name.removesuffix(_TOTAL): row.help
    for row in TABLE
    if row.kind is Counter and row.labels == ("tier",)
}


class Counters:
    """Counts by name; safe to use from several threads.

    Args:
        tier: whose.
    """

    def __init__(self, tier: str) -> None:
        self._tier = tier
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(NAMES, 0)
        for name in NAMES:  # what never happened is 0, and not unknown
            metric(name + _TOTAL, tier=tier)

    def add(self, name: str, count: int = 1) -> None:
        """Count ``count`` more.

        Raises:
            KeyError: no such name.
        """
        with self._lock:
            self._counts[name] += count
        metric(name + _TOTAL, tier=self._tier).inc(count)

    def __getitem__(self, name: str) -> int:
        with self._lock:
            return self._counts[name]

    def snapshot(self) -> dict[str, int]:
        """All counts."""
        with self._lock:
            return dict(self._counts)
