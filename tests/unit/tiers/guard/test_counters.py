"""The counters of a tier."""

from __future__ import annotations

import pytest

from kserve_lmcache.tiers.guard.counters import Counters


def test_counts_by_the_names_of_the_metrics_table() -> None:
    counters = Counters("remote")
    counters.add("failures", 2)
    assert counters["failures"] == 2
    with pytest.raises(KeyError):
        counters.add("anything")
