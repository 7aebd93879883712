"""The disk tier's index: the order of use, and scans while files change."""

from __future__ import annotations

import random

import pytest

from kserve_lmcache.tiers.disk import index as disk_index
from kserve_lmcache.tiers.disk.index import DiskIndex, File

BLOCK = 4096


def test_takes_the_oldest_of_many_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_index, "_OLDEST", 7)
    chance, index = random.Random(1), DiskIndex()
    used = {f"f{number}": number for number in chance.sample(range(1000), 200)}
    for name, when in used.items():
        index.add(name, File(1, when))
    while used:
        oldest = min(used, key=used.__getitem__)
        assert index.take_oldest() == (oldest, File(1, used.pop(oldest)))
        if used and chance.random() < 0.5:  # one was used meanwhile, of which others tell
            name = chance.choice(list(used))
            used[name] = 2000 - len(used)
            index.begin_scan()
            index.end_scan({name: File(1, when) for name, when in used.items()})
    assert index.take_oldest() is None
    assert index.occupied == 0


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_scan_keeps_what_changed_meanwhile(when: str) -> None:
    index = DiskIndex()
    index.add("kept", File(1, 1))
    index.add("evicted", File(1, 2))
    index.add("removed by others", File(1, 3))
    index.begin_scan()
    found = {"kept": File(1, 9), "theirs": File(BLOCK + 1, 5)}
    if when == "after":
        found |= {"evicted": File(1, 2)}
    else:
        found |= {"new": File(1, 8)}
    index.add("new", File(1, 8))
    index.discard("evicted")
    index.end_scan(found)
    assert len(index) == 3
    assert index.occupied == 4 * BLOCK
    taken = [index.take_oldest() for _ in range(4)]
    assert taken == [
        ("theirs", File(BLOCK + 1, 5)),
        ("new", File(1, 8)),
        ("kept", File(1, 9)),
        None,
    ]
