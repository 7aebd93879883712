"""The remote tier as LMCache's engine uses it, without vLLM."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from lmcache.utils import CacheEngineKey
from lmcache.v1.cache_engine import LMCacheEngine, LMCacheEngineBuilder
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.memory_management import MemoryFormat
from lmcache.v1.metadata import LMCacheMetadata

from kserve_lmcache.connector.cpu_copy import CPUPagedMemoryConnector
from kserve_lmcache.remote.address import Remote
from kserve_lmcache.remote.limits import Limits
from kserve_lmcache.remote.options import PLUGIN, to_extra_config
from kserve_lmcache.remote.plugin import RemoteTierConnector
from kserve_lmcache.remote.redis_store import PREFIX
from tests.support.remote import until
from tests.support.stores import Store, redis_process

LAYERS, HEADS, HEAD_SIZE, CHUNK, BLOCK = 2, 3, 8, 16, 4
TOKENS = 4 * CHUNK
# On a busy machine the usual deadlines pass; that is not what is tested here.
PATIENT = Limits(lookup=5)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with redis_process(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(autouse=True)
def _same_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")


@contextmanager
def replica(
    server: Store, local_gib: float = 0.05
) -> Iterator[tuple[LMCacheEngine, RemoteTierConnector]]:
    """LMCache's engine of one worker, whose remote store answers."""
    config = LMCacheEngineConfig.from_defaults(
        chunk_size=CHUNK,
        save_unfull_chunk=True,
        pre_caching_hash_algorithm="sha256_cbor",
        max_local_cpu_size=local_gib,
        remote_storage_plugins=[PLUGIN],
        remote_serde="naive",
        extra_config=to_extra_config(Remote(server.url, "test"), PATIENT),
    )
    metadata = LMCacheMetadata(
        model_name="model",
        world_size=1,
        local_world_size=1,
        worker_id=0,
        local_worker_id=0,
        kv_dtype=torch.float32,
        kv_shape=(LAYERS, 2, CHUNK, HEADS, HEAD_SIZE),
        chunk_size=CHUNK,
    )
    engine = LMCacheEngineBuilder.get_or_create(
        "remote",
        config,
        metadata,
        CPUPagedMemoryConnector.from_metadata(config, metadata),
        lambda tensor, source: None,
        lambda value, source: value,
    )
    engine.post_init()
    try:
        backend = engine.storage_manager.storage_backends[f"RemoteBackend-{PLUGIN}"]
        connector = backend.connection.getWrappedConnector()
        until(lambda: connector.tier.report()["up"])
        yield engine, connector
    finally:
        LMCacheEngineBuilder.destroy("remote")


def pages(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (TOKENS // BLOCK, HEADS, BLOCK, 2 * HEAD_SIZE)
    return [torch.randn(shape, generator=generator) for _ in range(LAYERS)]


def prompt(number: int, length: int = TOKENS) -> torch.Tensor:
    return torch.arange(length) + 1000 * number


def store(engine: LMCacheEngine, tokens: torch.Tensor, source: list[torch.Tensor]) -> None:
    slots = torch.arange(len(tokens))
    engine.store(tokens, kvcaches=source, slot_mapping=slots, req_id="store")


def load(engine: LMCacheEngine, tokens: torch.Tensor) -> tuple[int, int, list[torch.Tensor]]:
    """Tokens that a lookup finds, tokens that come, and the pages."""
    target = [torch.zeros_like(layer) for layer in pages(0)]
    found = engine.lookup(tokens, lookup_id="load", pin=True)
    mask = engine.retrieve(
        tokens, kvcaches=target, slot_mapping=torch.arange(len(tokens)), req_id="load"
    )
    engine.lookup_unpin("load")
    return found, int(mask.sum()), target


def test_what_one_replica_stores_another_loads(server: Store) -> None:
    source = pages(1)
    server.client().flushall()
    with replica(server) as (engine, connector):
        store(engine, prompt(1), source)
        until(lambda: connector.tier.report()["chunks_written"] == 4)
    with replica(server) as (engine, connector):
        found, came, target = load(engine, prompt(1))
        assert (found, came) == (TOKENS, TOKENS)
        for stored, loaded in zip(source, target, strict=True):
            assert torch.equal(stored, loaded)
        # Nothing holds the memory any longer but the local tier, from which it comes now.
        assert load(engine, prompt(1))[:2] == (TOKENS, TOKENS)
        assert connector.tier.report()["loads"] == 1


def test_a_corrupt_chunk_ends_the_load_before_it(server: Store) -> None:
    client = server.client()
    client.flushall()
    with replica(server) as (engine, connector):
        store(engine, prompt(2), pages(2))
        until(lambda: connector.tier.report()["chunks_written"] == 4)
        keys = [key.to_string() for key in _keys(engine, prompt(2))]
    value = client.get(PREFIX + keys[2])
    assert isinstance(value, bytes)
    client.set(PREFIX + keys[2], value[:-1] + bytes([value[-1] ^ 1]))
    with replica(server) as (engine, connector):
        found, came, target = load(engine, prompt(2))
        assert (found, came) == (TOKENS, 2 * CHUNK)
        blocks = 2 * CHUNK // BLOCK
        for stored, loaded in zip(pages(2), target, strict=True):
            assert torch.equal(stored[:blocks], loaded[:blocks])
            assert not loaded[blocks:].any()
        assert connector.tier.report()["chunks_corrupt"] == 1
        until(lambda: not client.exists(PREFIX + keys[2]))


def test_a_last_chunk_that_is_not_full(server: Store) -> None:
    length = CHUNK + 5
    server.client().flushall()
    with replica(server) as (engine, connector):
        store(engine, prompt(3, length), pages(3))
        until(lambda: connector.tier.report()["chunks_written"] == 2)
    with replica(server) as (engine, _):
        found, came, target = load(engine, prompt(3, length))
        assert (found, came) == (length, length)
        for stored, loaded in zip(pages(3), target, strict=True):
            stored, loaded = (each.transpose(1, 2).flatten(0, 1) for each in (stored, loaded))
            assert torch.equal(stored[:length], loaded[:length])


def test_a_full_local_tier_is_a_miss_for_the_rest(server: Store) -> None:
    server.client().flushall()
    with replica(server) as (engine, connector):
        store(engine, prompt(4), pages(4))
        until(lambda: connector.tier.report()["chunks_written"] == 4)
    with replica(server, local_gib=0.001) as (engine, connector):
        backend = engine.storage_manager.local_cpu_backend
        held = []
        size = torch.Size([2, LAYERS, CHUNK, HEADS * HEAD_SIZE])
        while True:
            memory = backend.allocate(size, torch.float32, MemoryFormat.KV_2LTD, busy_loop=False)
            if memory is None:
                break
            held.append(memory)
        held.pop().ref_count_down()
        found, came, _ = load(engine, prompt(4))
        assert (found, came) == (TOKENS, CHUNK)
        assert connector.tier.report()["chunks_without_room"] == 1
        for memory in held:
            memory.ref_count_down()


def test_the_other_ways_in(server: Store) -> None:
    server.client().flushall()
    with replica(server) as (engine, connector):
        store(engine, prompt(5), pages(5))
        until(lambda: connector.tier.report()["chunks_written"] == 4)
        keys = _keys(engine, prompt(5))

        async def ask() -> None:
            assert await connector.exists(keys[0])
            assert await connector.batched_async_contains("lookup", keys) == 4
            several = await connector.batched_get_non_blocking("lookup", keys)
            one = await connector.get(keys[0])
            assert len(several) == 4
            assert one is not None
            assert torch.equal(several[0].tensor, one.tensor)
            for memory in (*several, one):
                memory.ref_count_down()
            assert await connector.list() == []

        asyncio.run(ask())
        assert connector.exists_sync(keys[3])
        connector.remove_sync(keys[3])
        until(lambda: not connector.exists_sync(keys[3]))


def _keys(engine: LMCacheEngine, tokens: torch.Tensor) -> list[CacheEngineKey]:
    chunks = engine.token_database.process_tokens(tokens=tokens, request_configs=None)
    return [key for _, _, key in chunks]
