"""Over hours of traffic and faults nothing grows: memory, file descriptors, threads, the queue.

``SOAK_SECONDS=3600`` asks for an hour instead of half a minute.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from kserve_lmcache.remote.address import Remote
from kserve_lmcache.remote.limits import Limits
from kserve_lmcache.remote.tier import RemoteTier
from tests.support.faults import FAULTS, target_of
from tests.support.remote import LAYOUT, load, redis_tier, until
from tests.support.stores import redis_process

SECONDS = float(os.environ.get("SOAK_SECONDS", "30"))
SIZE = 200_000
MIB = 2**20
SMALL = ("--maxmemory", "200mb", "--maxmemory-policy", "allkeys-lru")
# Each lasts a second; those that restart the server take longer, and look no different from here.
PASSING = [
    FAULTS[name] for name in ("stopped", "reset in mid-value", "never answers", "out of memory")
]


def rounds(tier: RemoteTier, chance: random.Random) -> Iterator[None]:
    """Store new chunks and load old and new ones; each that comes is right."""
    for number in itertools.count():
        keys = [f"k{number}-{index}" for index in range(4)]
        values = {key: random.Random(key).randbytes(SIZE) for key in keys}
        for key, value in values.items():
            tier.store(key, LAYOUT, value, lambda: None)
        old = f"k{chance.randrange(number + 1)}-0"
        for wanted in (keys, [old]):
            found = tier.lookup(wanted)
            for key, came in zip(wanted, load(tier, wanted[:found]), strict=False):
                assert came == random.Random(key).randbytes(SIZE)
        yield


def figures() -> tuple[float, int, int]:
    """MiB of memory, open files, threads."""
    gc.collect()
    process = psutil.Process()
    return process.memory_info().rss / MIB, process.num_fds(), process.num_threads()


def test_nothing_grows(tmp_path: Path) -> None:
    limits = Limits(queue_bytes=16 * MIB)
    chance = random.Random(3)
    with (
        redis_process(
            tmp_path, "--maxmemory", "200mb", "--maxmemory-policy", "allkeys-lru"
        ) as store,
        target_of(store) as target,
        redis_tier(Remote(target.url, "test"), limits) as tier,
    ):
        traffic = rounds(tier, chance)
        taken: list[tuple[float, int, int]] = []
        end = time.monotonic() + SECONDS
        for fault in itertools.cycle(PASSING):
            for wait in (1.0, SECONDS / 20):
                until_then = time.monotonic() + wait
                if wait == 1.0:
                    with fault.applied(target):
                        while time.monotonic() < until_then:
                            next(traffic)
                else:
                    until(lambda: bool(tier.report()["up"]))
                    while time.monotonic() < until_then:
                        next(traffic)
            until(lambda: tier.report()["queue_bytes"] == 0)
            taken.append(figures())
            if time.monotonic() > end and len(taken) > 2 * len(PASSING):
                break
        found = tier.report()
    print(f"\n{len(taken)} times, MiB, files, threads: {taken[0]} … {taken[-1]}\n{found}")
    first, last = taken[len(PASSING)], taken[-1]
    assert last[0] < first[0] + 20
    assert last[1] <= first[1] + 3
    assert last[2] <= first[2] + 3
    assert found["queue_bytes_max"] <= limits.queue_bytes
    assert found["exceptions"] == 0
    assert found["chunks_read"] > 100
    assert found["opened"] >= len(PASSING)
