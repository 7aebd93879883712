"""A tier decides which loads are worth their time."""

from __future__ import annotations

from pathlib import Path

from kserve_lmcache.tiers.guard.load_cost import MIB
from tests.support.tiers import chunks, disk_tier, load, store_all
from tests.support.waiting import until


def test_a_slow_store_is_measured_in_the_background_and_used_again(tmp_path: Path) -> None:
    with disk_tier(tmp_path / "cache") as disk:
        tier, values = disk.tier, chunks("a", "b")
        store_all(tier, values)
        keys = list(values)
        for _ in range(3):
            tier.load_cost.loaded(MIB, 100.0)
            tier.load_cost.prefill.begin_step(512)
            tier.load_cost.prefill.end_step()
        assert tier.lookup(keys) == 0
        assert tier.counters["loads_skipped"] == 1
        assert tier.counters["loads"] == 0  # no request has waited
        until(lambda: tier.lookup(keys) == 2)
        assert load(tier, keys) == list(values.values())


def test_a_measurement_that_fails_changes_nothing(tmp_path: Path) -> None:
    with disk_tier(tmp_path / "cache") as disk:
        tier, values = disk.tier, chunks("a", "b")
        store_all(tier, values)
        keys = list(values)
        for _ in range(3):
            tier.load_cost.loaded(MIB, 100.0)
            tier.load_cost.prefill.begin_step(512)
            tier.load_cost.prefill.end_step()
        disk.path(keys[1]).write_bytes(b"damaged")
        tier._measure(keys)
        assert tier.lookup(keys) == 0
