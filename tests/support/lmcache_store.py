"""A remote tier before one of LMCache's own connectors, without an engine."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lmcache.v1.config import LMCacheEngineConfig

from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.tiers.guard.tier import Tier
from kserve_lmcache.tiers.lmcache.connectors import Connectors
from kserve_lmcache.tiers.lmcache.store import LMCacheStore
from kserve_lmcache.tiers.lmcache.values import value_size
from tests.support.lmcache_engine import metadata_of
from tests.support.tiers import LAYOUT, chunks, load, store_all
from tests.support.waiting import until

# As chunks of real models, longer than what the server of lm:// sends at a time: a short value
# would wait there for an acknowledgement.
PAYLOAD = 2**18
VALUE = value_size(LAYOUT, PAYLOAD)
values_of = functools.partial(chunks, size=PAYLOAD)
# On a busy machine the usual deadlines pass; most tests are not about them.
PATIENT = TierLimits(connect=10, lookup=5, load=10, write=10)
# The chunk size from which the tier derives the deadline of a load.
_PATIENT_CHUNK_BYTES = 2**26


def connectors(url: str, limits: TierLimits = PATIENT, groups: int = 1, **extra: Any) -> Connectors:
    """Makes LMCache's connectors to the store at ``url``, with options in ``extra``."""
    config = LMCacheEngineConfig.from_defaults(chunk_size=16, extra_config=extra)
    metadata = metadata_of(torch.bfloat16, (3, 2, 16, 2, 4))
    metadata.get_num_groups = lambda: groups
    return Connectors(url, config, metadata, VALUE, limits.connect)


@contextmanager
def lmcache_tier(
    url: str, limits: TierLimits = PATIENT, wait: bool = True, groups: int = 1, **extra: Any
) -> Iterator[Tier]:
    """A tier of the store at ``url``; by default one that answers."""
    make_store = functools.partial(LMCacheStore, connectors(url, limits, groups, **extra), limits)
    tier = Tier(url, make_store, limits, 16, _PATIENT_CHUNK_BYTES)
    try:
        if wait:
            until(lambda: bool(tier.report()["up"]), seconds=60)
        yield tier
    finally:
        tier.close()


def chunks_are_shared(one: Tier, other: Tier) -> None:
    """What one stores another loads, and nothing fails; no other test has these keys."""
    values = values_of(*(f"shared {letter}" for letter in "abcde"))
    a, b, *_ = values
    x = "shared x"
    assert other.lookup([*values]) == 0
    store_all(one, values)
    assert other.lookup([*values]) == 5
    assert load(other, [*values]) == [*values.values()]
    assert other.lookup([a, x, b]) == 1
    assert load(other, [a, x, b]) == [values[a]]
    store_all(one, values_of(a, x))
    assert other.lookup([a, x, b]) == 3
    assert load(other, [x]) == [*values_of(x).values()]
    stored, found = one.report(), other.report()
    assert (stored["chunks_written"], stored["chunks_known"]) == (6, 1)
    assert (found["chunks_read"], found["chunks_missing"]) == (7, 1)
    assert found["chunks_corrupt"] == 0
    assert (stored["failures"], found["failures"], found["opened"]) == (0, 0, 0)
    assert (stored["exceptions"], found["exceptions"]) == (0, 0)
