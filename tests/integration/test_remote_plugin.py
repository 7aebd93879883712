"""The remote tier as LMCache's engine uses it, without vLLM.

That what one replica stores another loads is tried with every kind of store in
``test_remote_backends``.
"""

from __future__ import annotations

import asyncio
import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lmcache.v1.health_monitor.checks.remote_backend_check import RemoteBackendHealthCheck
from lmcache.v1.memory_management import MemoryFormat, MemoryObj

from kserve_lmcache.compat.lmcache.engine import plugin_connectors
from kserve_lmcache.config import engine_file
from kserve_lmcache.config.stores import Remote
from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.config.tier_plugins import PLUGINS, REMOTE_PLUGIN
from kserve_lmcache.tiers.guard.codec import Layout, encode_header
from kserve_lmcache.tiers.redis.client import KEY_PREFIX
from tests.support.lmcache_engine import CHUNK, HEAD_SIZE, HEADS, LAYERS
from tests.support.replica import CHUNKS, TOKENS, Replica, alike, pages, prompt, replica
from tests.support.stores import Store
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("same_keys")

NAMES = {plugin.name: plugin.tier for plugin in PLUGINS}


def test_a_corrupt_chunk_ends_the_load_before_it(server: Store, remote: Remote) -> None:
    client = server.client()
    with replica(remote) as one:
        one.store(prompt(2), pages(2))
        third = KEY_PREFIX + one.keys(prompt(2))[2].to_string()
    value = client.get(third)
    assert isinstance(value, bytes)
    client.set(third, value[:-1] + bytes([value[-1] ^ 1]))
    with replica(remote) as other:
        found, came, target = other.load(prompt(2))
        assert (found, came) == (TOKENS, 2 * CHUNK)
        assert alike(target, pages(2), 2 * CHUNK)
        assert not any(layer[2 * CHUNK // 4 :].any() for layer in target)
        assert other.count("chunks_corrupt") == 1
        until(lambda: not client.exists(third))


def test_loads_that_fail_do_not_make_lmcache_turn_off_all_tiers(
    server: Store, remote: Remote, tmp_path: Path
) -> None:
    client = server.client()
    engine_file.write({"remote_url": remote.url}, remote, tmp_path / "file", TierLimits())
    told = engine_file.read(tmp_path / "file")["extra_config"]
    with replica(remote) as one:
        for number in range(10):
            one.store(prompt(number), pages(number))
    for key in client.scan_iter(f"{KEY_PREFIX}*"):
        client.setrange(key, client.strlen(key) - 1, b"\0\0")
    with replica(remote) as other:
        for number in range(10):
            assert other.load(prompt(number))[:2] == (TOKENS, 0)
        backend = other.engine.storage_manager.storage_backends[
            f"RemoteBackend-{REMOTE_PLUGIN.name}"
        ]
        assert backend.get_blocking_failed_count >= 10
        assert not RemoteBackendHealthCheck(backend).check()  # as LMCache has it
        backend.config.extra_config |= told
        assert RemoteBackendHealthCheck(backend).check()


def fill(one: Replica) -> list[MemoryObj]:
    """All chunks that the local tier has room for."""
    backend = one.engine.storage_manager.local_cpu_backend
    size = torch.Size([2, LAYERS, CHUNK, HEADS * HEAD_SIZE])
    held = []
    while (
        memory := backend.allocate(size, torch.float32, MemoryFormat.KV_2LTD, busy_loop=False)
    ) is not None:
        held.append(memory)
    return held


def room(one: Replica) -> int:
    """Chunks that the local tier has room for."""
    held = fill(one)
    for memory in held:
        memory.ref_count_down()
    return len(held)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """It would free what is lost, sometimes within LMCache's allocator, which then hangs."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()


def test_a_full_local_tier_is_a_miss_for_the_rest(remote: Remote) -> None:
    with replica(remote) as one:
        one.store(prompt(4), pages(4))
    with replica(remote, local_gib=0.001) as other:
        held = fill(other)
        held.pop().ref_count_down()
        found, came, _ = other.load(prompt(4))
        assert (found, came) == (TOKENS, CHUNK)
        assert other.count("chunks_without_room") == 1
        for memory in held:
            memory.ref_count_down()


def test_the_engine_is_asked_for_its_tier(remote: Remote) -> None:
    """The contract of ``plugin_connectors``."""
    with replica(remote) as one:
        adapter: Any = SimpleNamespace(lmcache_engine=one.engine)
        assert plugin_connectors(adapter, NAMES) == {"remote": one.connector}
        backends = one.engine.storage_manager.storage_backends
        name = f"RemoteBackend-{REMOTE_PLUGIN.name}"
        backend = backends[name]
        connection, backend.connection = backend.connection, None
        with pytest.raises(RuntimeError, match="could not make the remote tier"):
            plugin_connectors(adapter, NAMES)
        backend.connection = connection
        del backends[name]
        with pytest.raises(RuntimeError, match="could not make the remote tier"):
            plugin_connectors(adapter, NAMES)
        backends[name] = backend
        one.engine.config.remote_storage_plugins = ["theirs"]
        assert plugin_connectors(adapter, NAMES) == {}


@pytest.mark.parametrize(
    ("memory_format", "dtype", "more"),
    [
        ("KV_2LTD", "float32", -1),
        ("KV_2LTD", "float32", 1),
        ("KV_2LTD", "bfloat16", 0),
        ("KV_OF_ANOTHER", "float32", 0),
        ("KV_2LTD", "float3", 0),
        ("KV_2LTD", "nn", 0),
    ],
)
def test_a_payload_that_does_not_fit_its_layout_is_corrupt_and_holds_no_memory(
    server: Store, remote: Remote, memory_format: str, dtype: str, more: int
) -> None:
    with replica(remote, local_gib=0.001) as one:
        key = one.keys(prompt(6))[0].to_string()
        shape = (2, LAYERS, CHUNK, HEADS * HEAD_SIZE)
        payload = bytes(4 * math.prod(shape) + more)
        layout = Layout(memory_format, ((dtype, shape),))
        server.client().set(KEY_PREFIX + key, encode_header(key, layout, payload) + payload)
        before = room(one)
        with no_garbage_collection():
            assert one.load(prompt(6))[:2] == (CHUNK, 0)
            assert one.count("chunks_corrupt") == 1
            assert one.count("exceptions") == 0
            assert room(one) == before
        until(lambda: not server.client().exists(KEY_PREFIX + key))


def test_the_other_ways_in(remote: Remote) -> None:
    with replica(remote) as one:
        one.store(prompt(5), pages(5))
        keys = one.keys(prompt(5))
        connector = one.connector

        async def ask() -> None:
            assert await connector.exists(keys[0])
            assert await connector.batched_async_contains("lookup", keys) == CHUNKS
            several = await connector.batched_get_non_blocking("lookup", keys)
            single = await connector.get(keys[0])
            assert len(several) == CHUNKS
            assert single is not None
            assert torch.equal(several[0].tensor, single.tensor)
            for memory in (*several, single):
                memory.ref_count_down()
            assert await connector.list() == []

        asyncio.run(ask())
        assert connector.exists_sync(keys[3])
        connector.remove_sync(keys[3])
        until(lambda: not connector.exists_sync(keys[3]))
