"""LMCache's storage manager does what the cache server needs of it."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from kserve_lmcache.cache_server.messages import Row
from kserve_lmcache.cache_server.objects import name_of, payload_begin, seal
from kserve_lmcache.cache_server.tier_adapter import CHUNK_TOKENS, TIERS, DiskAdapter
from kserve_lmcache.compat.lmcache.storage import (
    SHARED_MEMORY,
    Plugin,
    Storage,
    _keys,
    remove_left_over_segments,
)
from kserve_lmcache.config.stores import Disk
from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.config.tier_plugins import DISK_PLUGIN
from tests.support.waiting import until

KIB = 2**10
ROW = Row("model", (0, 1), 64 * KIB)
DIGESTS = [bytes([number]) * 32 for number in range(6)]


@pytest.fixture
def storage() -> Iterator[Storage]:
    with closing(Storage(f"test-{os.getpid()}", 2**20, reservation_seconds=1)) as storage:
        yield storage


def filled(storage: Storage, digests: list[bytes], row: Row = ROW) -> None:
    offsets, dropped = storage.reserve(row, digests)
    assert min(offsets) >= 0
    assert dropped == 0
    storage.complete(row, digests)


def test_all_pages_are_mapped_before_the_first_write(storage: Storage) -> None:
    maps = psutil.Process().memory_maps(grouped=False)
    (segment,) = (each for each in maps if each.path.endswith(f"/{storage.segment}"))
    assert segment.rss == storage.size == 2**20


def test_what_is_reserved_is_not_there_before_it_is_complete(storage: Storage) -> None:
    offsets, _ = storage.reserve(ROW, DIGESTS)
    assert len(set(offsets)) == len(DIGESTS)
    assert all(offset % 4096 == 0 and offset + ROW.size <= storage.size for offset in offsets)
    assert storage.find([ROW], DIGESTS) == 0
    assert storage.read(ROW, DIGESTS) == []
    storage.complete(ROW, DIGESTS[:4])
    assert storage.find([ROW], DIGESTS) == 4
    assert storage.read(ROW, DIGESTS) == offsets[:4]
    storage.release(ROW, DIGESTS[:4])


def test_what_is_withdrawn_can_be_reserved_again(storage: Storage) -> None:
    filled(storage, DIGESTS[:1])
    storage.reserve(ROW, DIGESTS[:4])
    storage.withdraw(ROW, DIGESTS[:3])
    assert storage.find([ROW], DIGESTS) == 1  # what is there stays, and what is reserved
    assert storage.used() == 2 * ROW.size
    offsets, _ = storage.reserve(ROW, DIGESTS[:4])
    assert [offset >= 0 for offset in offsets] == [False, True, True, False]
    storage.complete(ROW, DIGESTS[:4])
    assert storage.find([ROW], DIGESTS) == 4


def test_what_is_there_or_reserved_is_not_reserved_again(storage: Storage) -> None:
    filled(storage, DIGESTS[:2])
    storage.reserve(ROW, DIGESTS[2:4])
    offsets, dropped = storage.reserve(ROW, DIGESTS)
    assert [offset >= 0 for offset in offsets] == [False] * 4 + [True] * 2
    assert dropped == 0


def test_a_prefix_ends_at_the_first_chunk_that_a_worker_lacks(storage: Storage) -> None:
    rows = [Row("model", (rank, 2), size * KIB) for rank, size in ((0, 64), (1, 32))]
    filled(storage, DIGESTS, rows[0])
    filled(storage, [*DIGESTS[:3], *DIGESTS[4:]], rows[1])
    assert storage.find(rows, DIGESTS) == 3
    assert storage.find(rows[:1], DIGESTS) == 6


@pytest.mark.parametrize(
    "other", [Row("other", (0, 1), ROW.size), Row("model", (0, 1), ROW.size, "salt")]
)
def test_a_model_or_a_salt_has_chunks_of_its_own(storage: Storage, other: Row) -> None:
    filled(storage, DIGESTS)
    assert storage.find([other], DIGESTS) == 0


def test_a_full_memory_says_so(storage: Storage) -> None:
    many = [os.urandom(32) for _ in range(20)]
    offsets, dropped = storage.reserve(ROW, many)
    assert 0 < dropped < 20
    assert dropped == offsets.count(-1)


def test_what_is_read_is_not_evicted(storage: Storage) -> None:
    filled(storage, DIGESTS)
    offsets = storage.read(ROW, DIGESTS)
    for _ in range(4):
        many = [os.urandom(32) for _ in range(8)]
        storage.reserve(ROW, many)
        storage.complete(ROW, many)
        time.sleep(0.6)
    assert storage.read(ROW, DIGESTS) == offsets


def test_the_oldest_are_evicted(storage: Storage) -> None:
    filled(storage, DIGESTS[:3])
    filled(storage, DIGESTS[3:])
    storage.find([ROW], DIGESTS[:3])  # the younger ones from now on
    many = [os.urandom(32) for _ in range(9)]
    filled(storage, many)
    time.sleep(1.5)
    assert storage.find([ROW], DIGESTS[:3]) == 3
    assert storage.find([ROW], DIGESTS[3:]) < 3
    assert storage.find([ROW], many) == len(many)


def test_an_abandoned_reservation_is_no_hit_and_gives_its_memory_back(storage: Storage) -> None:
    storage.reserve(ROW, DIGESTS)
    used = storage.used()
    assert used >= len(DIGESTS) * ROW.size
    time.sleep(1.2)
    storage.complete(ROW, DIGESTS[:1])  # too late
    assert storage.find([ROW], DIGESTS) == 0
    for digest in DIGESTS[1:]:
        storage.give_up(ROW, digest)
    assert storage.used() <= ROW.size
    filled(storage, DIGESTS)
    assert storage.find([ROW], DIGESTS) == len(DIGESTS)


def test_what_is_given_up_and_written_by_another_stays(storage: Storage) -> None:
    storage.reserve(ROW, DIGESTS[:1])
    time.sleep(1.2)
    filled(storage, DIGESTS[:1])
    storage.give_up(ROW, DIGESTS[0])
    assert storage.find([ROW], DIGESTS[:1]) == 1


def test_what_is_discarded_is_gone(storage: Storage) -> None:
    filled(storage, DIGESTS)
    storage.discard(ROW, DIGESTS[1:2])
    assert storage.find([ROW], DIGESTS) == 1


def test_a_fetch_that_nobody_waits_for_locks_nothing_and_keeps_its_result(tmp_path: Path) -> None:
    parameters = DISK_PLUGIN.encode(Disk((str(tmp_path),), 2**24), TierLimits(load=5, lookup=5))
    tier = Plugin(DiskAdapter.__module__, DiskAdapter.__name__, {**parameters, CHUNK_TOKENS: 256})
    payload, digests = 8 * KIB, DIGESTS[:3]
    row = Row("model", (0, 1), payload_begin(payload) + payload)
    with closing(Storage(f"below-{os.getpid()}", 2**20, [tier])) as storage:
        controller = storage._manager._prefetch_controller

        def results() -> int:
            return int(controller.report_status()["completed_results_count"])

        offsets, _ = storage.reserve(row, digests)
        with (SHARED_MEMORY / storage.segment).open("r+b") as file:
            memory = mmap.mmap(file.fileno(), storage.size)
        for digest, offset in zip(digests, offsets, strict=True):
            seal(name_of(row, digest), memoryview(memory)[offset : offset + row.size], payload)
        storage.complete(row, digests)
        until(lambda: TIERS["disk"].tier.report()["chunks_written"] == 3)
        for loaded in (False, True):  # from the memory, and from the tier
            handle = storage.fetch([row], digests, 0)
            until(lambda: results() == 1)
            assert storage.find([row], digests) == 3
            # Locked objects would stay.
            storage._manager.delete_l1_keys(_keys(row, digests))
            assert storage.find([row], digests) == 0
            assert results() == 1
            assert storage.fetched(handle, 0) == 3
            assert results() == 0
            assert storage.fetched(handle, 0) is None
            assert TIERS["disk"].tier.report()["chunks_read"] == 3 * loaded


def test_pages_are_taken_at_the_start(storage: Storage) -> None:
    state = (SHARED_MEMORY / storage.segment).stat()
    assert state.st_blocks * 512 >= storage.size


def test_a_memory_without_room_is_an_error() -> None:
    name = f"large-{os.getpid()}"
    with pytest.raises(OSError, match="space"):
        Storage(name, 2**40)
    assert not [*SHARED_MEMORY.glob(f"*{name}")]


KILLED = """
import os, signal, sys
from kserve_lmcache.compat.lmcache.storage import Storage
storage = Storage(sys.argv[1], 2**20)
print(storage.segment, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_segment_of_a_server_that_was_killed_is_removed(storage: Storage) -> None:
    name = f"killed-{os.getpid()}"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, name], check=False, capture_output=True, text=True
    )
    assert killed.stdout.strip().endswith(name)  # a server that starts elsewhere may remove it
    remove_left_over_segments()
    assert not (SHARED_MEMORY / killed.stdout.strip()).exists()
    assert (SHARED_MEMORY / storage.segment).exists()


def test_no_engine_is_imported() -> None:
    code = "import sys, kserve_lmcache.cache_server.server; print('vllm' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path("/")
    )
    assert found.stdout == "False\n"
