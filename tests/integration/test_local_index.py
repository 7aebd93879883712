"""The watched index of LMCache's local CPU tier, and the names of its chunks (the contract)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kserve_lmcache.compat.lmcache.local_index import key_maker, text_of, watch_local
from kserve_lmcache.tiers.changes import chunk_of
from tests.support.lmcache_engine import (
    BLOCK,
    BLOCKS,
    CHUNK,
    HEAD_SIZE,
    HEADS,
    LAYERS,
    an_engine,
    use,
)

pytestmark = pytest.mark.usefixtures("same_keys")


def store(engine: Any, number: int) -> list[Any]:
    """Store two chunks; returns their keys."""
    tokens = torch.arange(2 * CHUNK) + 1000 * number
    cache = [torch.zeros(BLOCKS, HEADS, BLOCK, 2 * HEAD_SIZE) for _ in range(LAYERS)]
    use(engine, cache)
    engine.store(tokens, kvcaches=cache, slot_mapping=torch.arange(len(tokens)), req_id="one")
    return [key for _, _, key in engine.token_database.process_tokens(tokens)]


@pytest.mark.parametrize("policy", ["LRU", "LFU", "FIFO", "MRU"])
def test_every_change_is_told_under_the_tiers_lock(policy: str) -> None:
    with an_engine("watched", cache_policy=policy, max_local_cpu_size=0.001) as engine:
        backend = engine.storage_manager.storage_backends["LocalCPUBackend"]
        before, kind = store(engine, 0), type(backend.hot_cache)
        told: dict[str, bool] = {}
        locked: set[bool] = set()

        def tell(key: str, present: bool) -> None:
            locked.add(backend.cpu_lock.locked())
            told[key] = present

        watch_local(engine, tell)
        assert isinstance(backend.hot_cache, kind)
        assert told == {key.to_string(): True for key in before}
        for number in range(1, 200):
            store(engine, number)
            present = {key.to_string() for key in backend.hot_cache}
            assert {key for key, there in told.items() if there} == present
        assert len(told) > len(present)  # some were evicted
        backend.remove(next(iter(backend.hot_cache)))
        backend.clear()
        assert not backend.hot_cache
        assert not any(told.values())
        assert locked == {True}


def test_a_key_is_made_of_a_chunks_name() -> None:
    with an_engine("named") as engine:
        make = key_maker(engine)
        for configs in (None, {"lmcache.tag.kserve": "tag"}):
            chunks = engine.token_database.process_tokens(
                torch.arange(CHUNK), request_configs=configs
            )
            ((_, _, key),) = chunks
            name = chunk_of(key.to_string())
            assert make(name) == key.to_string()
            assert name.partition("@")[0] == text_of(key.chunk_hash)
