"""LMCache's engine with the remote tier before one of LMCache's own connectors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from lmcache.v1.cache_engine import LMCacheEngine, LMCacheEngineBuilder
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.metadata import LMCacheMetadata

from kserve_lmcache.connector.cpu_copy import CPUPagedMemoryConnector
from kserve_lmcache.remote.address import Remote
from kserve_lmcache.remote.options import PLUGIN, to_extra_config
from kserve_lmcache.remote.tier import RemoteTier
from tests.support.lmcache_store import PATIENT
from tests.support.remote import until

LAYERS, HEADS, HEAD_SIZE, CHUNK, BLOCK = 2, 3, 8, 16, 4
TOKENS = 2 * CHUNK + CHUNK // 2  # the last chunk is not whole


@contextmanager
def replica(url: str) -> Iterator[tuple[LMCacheEngine, RemoteTier]]:
    config = LMCacheEngineConfig.from_defaults(
        chunk_size=CHUNK,
        save_unfull_chunk=True,
        pre_caching_hash_algorithm="sha256_cbor",
        max_local_cpu_size=0.05,
        remote_storage_plugins=[PLUGIN],
        remote_serde="naive",
        extra_config=to_extra_config(Remote(url, "test"), PATIENT),
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
        "guarded",
        config,
        metadata,
        CPUPagedMemoryConnector.from_metadata(config, metadata),
        lambda tensor, source: None,
        lambda value, source: value,
    )
    engine.post_init()
    try:
        backend = engine.storage_manager.storage_backends[f"RemoteBackend-{PLUGIN}"]
        tier = backend.connection.getWrappedConnector().tier
        until(lambda: bool(tier.report()["up"]), seconds=60)
        yield engine, tier
    finally:
        LMCacheEngineBuilder.destroy("guarded")


def test_what_one_replica_stores_another_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    url = f"fs://localhost:0{tmp_path}"
    generator = torch.Generator().manual_seed(1)
    shape = (TOKENS // BLOCK, HEADS, BLOCK, 2 * HEAD_SIZE)
    source = [torch.randn(shape, generator=generator) for _ in range(LAYERS)]
    target = [torch.zeros(shape) for _ in range(LAYERS)]
    tokens, slots = torch.arange(TOKENS), torch.arange(TOKENS)
    with replica(url) as (engine, tier):
        engine.store(tokens, kvcaches=source, slot_mapping=slots, req_id="store")
        until(lambda: tier.report()["chunks_written"] == 3)
    sizes = {path.stat().st_size for path in tmp_path.iterdir()}
    assert len(sizes) == 2  # all chunks are of one size; the other is the sign of life
    with replica(url) as (engine, tier):
        assert engine.lookup(tokens, lookup_id="load", pin=True) == TOKENS
        mask = engine.retrieve(tokens, kvcaches=target, slot_mapping=slots, req_id="load")
        engine.lookup_unpin("load")
        assert int(mask.sum()) == TOKENS
        assert tier.report()["chunks_read"] == 3
    for stored, loaded in zip(source, target, strict=True):
        assert torch.equal(stored, loaded)
