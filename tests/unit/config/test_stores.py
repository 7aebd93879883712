from __future__ import annotations

from kserve_lmcache.config.stores import Disk


def test_workers_are_spread_over_the_disks() -> None:
    disk = Disk(("/a", "/b"), 1)
    assert [disk.directory_of(worker) for worker in range(3)] == ["/a", "/b", "/a"]
