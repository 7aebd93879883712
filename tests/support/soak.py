"""Traffic and faults for a while, in a process of its own, whose figures are then only theirs.

    python -m tests.support.soak SECONDS DIRECTORY

goes on for SECONDS, and then until each fault has come twice, and prints a JSON object:

- ``faults``: how many there are; each comes in its turn.
- ``figures``: of the process (MiB of memory, open files, threads) after each of them, when the
  store has answered for a while and nothing waits.
- ``queue_limit``: bytes that may wait to be written.
- ``report``: the tier's, at the end.

It fails where a chunk that comes is not what was stored.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from kserve_lmcache.config.stores import Remote
from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.tiers.guard.tier import Tier
from tests.support.faults import FAULTS, Target, target_of
from tests.support.stores import redis_process
from tests.support.tiers import LAYOUT, load, redis_tier
from tests.support.waiting import until

_SIZE = 200_000
_MIB = 2**20
_SMALL = ("--maxmemory", "200mb", "--maxmemory-policy", "allkeys-lru")
_LIMITS = TierLimits(queue_bytes=16 * _MIB)
# Each lasts a second; those that restart the server take longer, and look no different from here.
_PASSING = [
    FAULTS[name] for name in ("stopped", "reset in mid-value", "never answers", "out of memory")
]


def _soak(seconds: float, directory: Path) -> dict[str, Any]:
    with (
        redis_process(directory, *_SMALL) as store,
        target_of(store) as target,
        redis_tier(Remote(target.url, "test"), _LIMITS, size=_SIZE) as tier,
    ):
        return {
            "faults": len(_PASSING),
            "figures": [*_all_figures(tier, target, seconds)],
            "queue_limit": _LIMITS.queue_bytes,
            "report": tier.report(),
        }


def _all_figures(tier: Tier, target: Target, seconds: float) -> Iterator[dict[str, float]]:
    traffic = _rounds(tier, random.Random(3))
    end = time.monotonic() + seconds
    for number, fault in enumerate(itertools.cycle(_PASSING), 1):
        with fault.applied(target):
            _run(traffic, 1.0)
        until(lambda: bool(tier.report()["up"]))
        _run(traffic, seconds / 20)
        until(lambda: tier.report()["queue_bytes"] == 0)
        yield _figures()
        if time.monotonic() > end and number > 2 * len(_PASSING):
            return


def _rounds(tier: Tier, chance: random.Random) -> Iterator[None]:
    """Store new chunks and load old and new ones; each that comes is right."""
    for number in itertools.count():
        keys = [f"k{number}-{index}" for index in range(4)]
        values = {key: random.Random(key).randbytes(_SIZE) for key in keys}
        for key, value in values.items():
            tier.store(key, LAYOUT, value, lambda: None)
        old = f"k{chance.randrange(number + 1)}-0"
        for wanted in (keys, [old]):
            found = tier.lookup(wanted)
            for key, came in zip(wanted, load(tier, wanted[:found]), strict=False):
                assert came == random.Random(key).randbytes(_SIZE)
        yield


def _run(traffic: Iterator[None], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        next(traffic)


def _figures() -> dict[str, float]:
    gc.collect()
    # What glibc keeps for later is not in use, and comes and goes by as much as a leak would.
    ctypes.CDLL(None).malloc_trim(0)
    process = psutil.Process()
    return {
        "mib": process.memory_info().rss / _MIB,
        "files": process.num_fds(),
        "threads": process.num_threads(),
    }


if __name__ == "__main__":
    print(json.dumps(_soak(float(sys.argv[1]), Path(sys.argv[2]))))
