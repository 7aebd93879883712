"""What we touch of LMCache's internals is there and behaves as we rely on."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy
import pytest
import torch
from lmcache.integration.vllm import utils, vllm_service_factory, vllm_v1_adapter
from lmcache.integration.vllm.utils import ENGINE_NAME
from lmcache.utils import parse_cache_key
from lmcache.v1 import manager, protocol
from lmcache.v1.cache_engine import LMCacheEngine
from lmcache.v1.config import _CONFIG_DEFINITIONS, LMCacheEngineConfig
from lmcache.v1.memory_management import MemoryFormat, TensorMemoryObj
from lmcache.v1.offload_server.zmq_server import ZMQOffloadServer
from lmcache.v1.storage_backend import connector as connectors
from lmcache.v1.storage_backend.connector.base_connector import RemoteConnector
from lmcache.v1.storage_backend.job_executor.pq_executor import AsyncPQExecutor
from vllm.distributed.kv_transfer.kv_connector.v1.lmcache_connector import LMCacheConnectorV1

from kserve_lmcache.compat.lmcache import connectors as private_connectors
from kserve_lmcache.compat.lmcache import copy_path
from kserve_lmcache.compat.lmcache import engine as lmcache_engine
from kserve_lmcache.compat.lmcache.engine import end_offload_server, limit_cached_tokens
from kserve_lmcache.compat.lmcache.local_tier import LocalTier
from kserve_lmcache.compat.lmcache.pictures import tokens_in_keys
from kserve_lmcache.config import keys
from kserve_lmcache.config.settings import SETTINGS
from kserve_lmcache.config.stores import Disk, Remote
from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.config.tier_plugins import DISK_PLUGIN, PLUGINS, REMOTE_PLUGIN
from kserve_lmcache.config.values import parse
from kserve_lmcache.tiers.lmcache import connectors as tier_connectors
from kserve_lmcache.tiers.lmcache import values as tier_values
from tests.support.lmcache_engine import (
    BLOCK,
    BLOCKS,
    CHUNK,
    HEAD_SIZE,
    HEADS,
    LAYERS,
    PAGES,
    an_engine,
    use,
)
from tests.support.waiting import until

NAMES = {plugin.name: plugin.tier for plugin in PLUGINS}


@pytest.fixture
def engine() -> Iterator[LMCacheEngine]:
    with an_engine(ENGINE_NAME) as engine:
        yield engine


def paged_cache(engine: LMCacheEngine) -> list[torch.Tensor]:
    """A KV cache that the engine copies from and to."""
    generator = torch.Generator().manual_seed(0)
    shape = (BLOCKS, HEADS, BLOCK, 2 * HEAD_SIZE)
    cache = [torch.randn(shape, generator=generator) for _ in range(LAYERS)]
    use(engine, cache)
    return cache


def adapter_of(engine: LMCacheEngine, cache: list[torch.Tensor]) -> SimpleNamespace:
    """What of a worker's adapter a load needs."""
    return SimpleNamespace(
        lmcache_engine=engine,
        config=engine.config,
        kv_caches=dict(enumerate(cache)),
        device="cpu",
    )


def test_an_engine_with_our_copy_stores_and_loads(engine: LMCacheEngine) -> None:
    source = paged_cache(engine)
    target = [torch.zeros_like(layer) for layer in source]
    tokens = torch.arange(2 * CHUNK)
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randperm(2 * CHUNK // BLOCK, generator=generator)
    slots = (blocks[:, None] * BLOCK + torch.arange(BLOCK)).flatten()
    engine.store(tokens, kvcaches=source, slot_mapping=slots, req_id="store")
    assert engine.lookup(tokens, lookup_id="load", pin=True) == 2 * CHUNK
    use(engine, target)
    mask = engine.retrieve(tokens, kvcaches=target, slot_mapping=slots, req_id="load")
    assert int(mask.sum()) == 2 * CHUNK
    for stored, loaded in zip(source, target, strict=True):
        assert torch.equal(stored[: len(blocks)], loaded[: len(blocks)])
        assert not loaded[len(blocks) :].any()


def test_memory_objects_are_opaque_bytes_of_each_worker(engine: LMCacheEngine) -> None:
    token = PAGES.bytes_per_token
    assert engine.metadata.get_shapes(CHUNK) == [torch.Size([1, 1, CHUNK, token])]
    assert engine.metadata.get_dtypes() == [torch.uint8]
    assert lmcache_engine.token_bytes(adapter_of(engine, [])) == token
    assert not engine.save_only_first_rank
    memory = copy_path.allocate(adapter_of(engine, []), CHUNK)
    assert memory is not None
    assert memory.tensor.shape == engine.gpu_connector.get_shape(CHUNK)
    assert memory.tensor.is_contiguous()
    assert memory.tensor.data_ptr() % 8 == 0
    memory.ref_count_down()


def test_a_suffix_of_the_namespace_changes_every_key_from_then_on(engine: LMCacheEngine) -> None:
    def keys() -> list[Any]:
        found = engine.token_database.process_tokens(list(range(2 * CHUNK)))
        return [key for _, _, key in found]

    before, cache = keys(), paged_cache(engine)
    tokens, slots = list(range(2 * CHUNK)), torch.arange(2 * CHUNK)
    engine.store(tokens, kvcaches=cache, slot_mapping=slots, req_id="store")
    copy_path.name_keys(adapter_of(engine, []), "other")
    after = keys()
    assert [key.model_name for key in after] == [f"{key.model_name}-other" for key in before]
    assert engine.lookup(tokens, lookup_id="other", pin=False) == 0


def test_every_worker_is_asked_whatever_the_models_attention(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = LMCacheEngineConfig.from_defaults()
    monkeypatch.setattr(copy_path, "lmcache_get_or_create_config", lambda: config)
    assert config.get_lookup_server_worker_ids(True, 4) == [0]
    vllm_config: Any = SimpleNamespace(parallel_config=SimpleNamespace(world_size=4))
    copy_path.ask_every_worker(vllm_config)
    for use_mla in (True, False):
        assert config.get_lookup_server_worker_ids(use_mla, 4) == [0, 1, 2, 3]


def test_the_offload_servers_thread_ends_before_its_socket_is_closed(
    engine: LMCacheEngine,
) -> None:
    server = ZMQOffloadServer(engine, 0)
    end_offload_server(server, engine.metadata, 0)
    assert not server.thread.is_alive()
    server.close()


def test_the_factory_takes_the_engine_that_is_already_there(engine: LMCacheEngine) -> None:
    factory = vllm_service_factory.VllmServiceFactory(engine.config, SimpleNamespace(), "worker")
    factory.metadata = engine.metadata
    assert factory.get_or_create_lmcache_engine() is engine


def test_the_adapter_keeps_its_manager_and_configuration() -> None:
    source = inspect.getsource(vllm_v1_adapter.LMCacheConnectorV1Impl.__init__)
    assert "self._manager = LMCacheManager(" in source
    assert "self.config = config" in source
    for name in ("register_kv_caches", "shutdown"):
        assert callable(getattr(vllm_v1_adapter.LMCacheConnectorV1Impl, name))


def test_a_load_tells_the_blocks_that_are_missing(engine: LMCacheEngine) -> None:
    cache = paged_cache(engine)
    whole = [layer.clone() for layer in cache]
    tokens = list(range(3 * CHUNK))
    adapter, blocks = adapter_of(engine, cache), list(range(11, -1, -1))
    slots = torch.tensor([block * BLOCK + place for block in blocks for place in range(BLOCK)])
    stored = 2 * CHUNK
    engine.store(tokens[:stored], kvcaches=cache, slot_mapping=slots[:stored], req_id="store")
    for layer in cache:
        layer.zero_()

    def load(
        tokens: list[int],
        computed: int,
        blocks: list[int],
        configs: dict[str, str] | None = None,
    ) -> set[int]:
        return lmcache_engine.load(
            adapter,
            "load",
            tokens=tokens,
            computed_tokens=computed,
            blocks=blocks,
            block_size=BLOCK,
            request_configs=configs,
        )

    assert load(tokens[:stored], 0, blocks) == set()
    assert load(tokens, 0, blocks) == set(blocks[8:])
    assert all(
        torch.equal(now[4:12], before[4:12]) for now, before in zip(cache, whole, strict=True)
    )
    assert load(tokens, 10 * BLOCK, blocks) == set(blocks[10:])
    # Another tenant's, and another text's.
    configs = {"lmcache.tag.kserve": "other"}
    assert load(tokens[:stored], 0, blocks, configs) == set(blocks[:8])
    assert load([1, *tokens[: stored - 1]], 0, blocks) == set(blocks[:8])
    # The last chunk's last token has no block: vLLM computes it, and gives its block later.
    assert load(tokens[:stored], 0, blocks[:7]) == set(blocks[4:7])


def test_every_chunk_comes_into_the_local_tier_by_one_call(engine: LMCacheEngine) -> None:
    """And what is taken, refused, evicted and erased there is as :class:`LocalTier` has it."""
    admitted: list[tuple[Any, int]] = []
    refused: set[Any] = set()

    def admits(key: Any, size: int) -> bool:
        admitted.append((key, size))
        return key not in refused

    local = LocalTier(engine, admits)
    cache, tokens = paged_cache(engine), list(range(4 * CHUNK))
    keys = local.keys_of(tokens, "lmcache.tag.kserve", "tag")
    assert all(key.to_string().startswith(local.worker) for key in keys)
    assert all(key.to_string().endswith("@kserve%tag") for key in keys)
    refused.add(keys[3])
    arguments = {"kvcaches": cache, "slot_mapping": torch.arange(4 * CHUNK), "req_id": "store"}
    engine.store(tokens, request_configs={"lmcache.tag.kserve": "tag"}, **arguments)
    before = [(key, size) for key, size in admitted if size]
    assert [key for key, _ in before] == keys
    chunks = local.chunks()
    assert [(key, size) for key, size, _ in chunks] == before[:3]
    assert all(0 <= age < 60 for *_, age in chunks)
    backend = engine.storage_manager.storage_backends["LocalCPUBackend"]
    memory = local.take(keys[0])
    assert memory is not None
    assert not local.evict(keys[0])
    assert local.erase([keys[0]], 0.05) == (1, 1)  # somebody holds it
    assert memory.raw_data.any()
    local.put(keys[0], memory)
    assert local.has(keys[0])
    assert memory.can_evict
    assert local.evict(keys[1])
    assert local.erase([*keys, keys[0]], 0.05) == (2, 0)
    assert not memory.raw_data.any()
    assert not backend.hot_cache
    assert local.take(keys[0]) is None


def test_a_load_lets_go_of_what_was_looked_up(engine: LMCacheEngine) -> None:
    cache = paged_cache(engine)
    tokens = list(range(2 * CHUNK))
    engine.store(tokens, kvcaches=cache, slot_mapping=torch.arange(2 * CHUNK), req_id="store")
    memory = engine.storage_manager.storage_backends["LocalCPUBackend"]
    for request in ("loaded", "released"):
        assert engine.lookup(tokens, lookup_id=request, pin=True) == 2 * CHUNK
    assert all(each.is_pinned for each in memory.hot_cache.values())
    lmcache_engine.load(
        adapter_of(engine, cache),
        "loaded",
        tokens=tokens,
        computed_tokens=0,
        blocks=list(range(8)),
        block_size=BLOCK,
        request_configs=None,
    )
    assert all(each.is_pinned for each in memory.hot_cache.values())
    lmcache_engine.unpin(adapter_of(engine, cache), ["released", "never looked up"])
    assert not any(each.is_pinned for each in memory.hot_cache.values())
    assert not engine.lookup_pins


@pytest.mark.parametrize("chunks", [1, 6])
def test_a_full_local_tier_is_a_miss_for_the_rest_and_no_wait(chunks: int, tmp_path: Path) -> None:
    slots = torch.arange(20 * CHUNK)
    tokens, others = list(range(chunks * CHUNK)), list(range(1000, 1000 + 20 * CHUNK))
    one = 2 * LAYERS * CHUNK * HEADS * HEAD_SIZE * 4
    settings = {
        "remote_storage_plugins": [DISK_PLUGIN.name],
        "extra_config": DISK_PLUGIN.encode(Disk((str(tmp_path),), 2**30), TierLimits(load=20)),
        "max_local_cpu_size": 12 * max(one, 4096) / 2**30,
    }
    with an_engine(ENGINE_NAME, **settings) as engine:
        cache = paged_cache(engine)
        lmcache_engine.never_wait_for_room(adapter_of(engine, cache))
        disk = lmcache_engine.plugin_connectors(adapter_of(engine, cache), NAMES)["disk"].tier
        until(lambda: disk.report()["up"])
        memory = engine.storage_manager.storage_backends["LocalCPUBackend"]

        def store(some: list[int]) -> None:
            before = disk.report()["chunks_written"]
            engine.store(some, kvcaches=cache, slot_mapping=slots[: len(some)], req_id="store")
            until(lambda: disk.report()["chunks_written"] > before)
            until(lambda: disk.report()["queue_bytes"] == 0)

        store(tokens)
        engine.clear(locations=["LocalCPUBackend"])
        store(others)
        pinned = engine.lookup(others, search_range=["LocalCPUBackend"], lookup_id="held", pin=True)
        assert pinned > 0
        assert memory.memory_allocator.allocate(torch.Size([one // 4]), torch.float32) is None
        begun = time.monotonic()
        loaded = engine.retrieve(
            tokens, kvcaches=cache, slot_mapping=slots[: len(tokens)], req_id="full"
        )
        assert time.monotonic() - begun < 1
        assert int(loaded.sum()) == 0
        engine.lookup_unpin("held")
        loaded = engine.retrieve(
            tokens, kvcaches=cache, slot_mapping=slots[: len(tokens)], req_id="roomy"
        )
        assert int(loaded.sum()) == len(tokens)


def test_how_much_of_the_local_tier_is_used(engine: LMCacheEngine) -> None:
    adapter = adapter_of(engine, [])
    before, capacity = lmcache_engine.local_cpu_bytes(adapter)
    assert capacity == int(0.05 * 2**30)
    tokens = list(range(2 * CHUNK))
    engine.store(
        tokens, kvcaches=paged_cache(engine), slot_mapping=torch.arange(2 * CHUNK), req_id="s"
    )
    used, _ = lmcache_engine.local_cpu_bytes(adapter)
    assert used - before >= 2 * LAYERS * 2 * CHUNK * HEADS * HEAD_SIZE * 4
    assert lmcache_engine.is_first(adapter)


def test_what_we_expect_is_what_a_lookup_leaves() -> None:
    source = inspect.getsource(vllm_v1_adapter.LMCacheConnectorV1Impl)
    assert "self.load_specs[req_id] = LoadSpec(" in source
    assert "load_spec = self.load_specs.pop(req_id, None)" in source
    adapter = SimpleNamespace(load_specs={})
    lmcache_engine.set_cached_tokens(adapter, "request", computed_tokens=128, cached_tokens=64)
    found = adapter.load_specs["request"]
    assert (found.vllm_cached_tokens, found.lmcache_cached_tokens) == (128, 64)
    assert found.can_load is False


def test_what_was_found_and_not_loaded_is_not_counted_on() -> None:
    source = inspect.getsource(vllm_v1_adapter.LMCacheConnectorV1Impl)
    assert "expected = max(lmcache_cached_tokens, load_spec.vllm_cached_tokens)" in source
    adapter = SimpleNamespace(load_specs={})
    limit_cached_tokens(adapter, "unknown", computed_tokens=128)
    for found, left in ((512, 128), (128, 128), (0, 0)):
        adapter.load_specs["request"] = vllm_v1_adapter.LoadSpec(128, found, can_load=False)
        limit_cached_tokens(adapter, "request", computed_tokens=128)
        assert adapter.load_specs["request"].lmcache_cached_tokens == left


def test_a_partial_chunk_that_fails_to_load_goes_unnoticed() -> None:
    """Why the configuration refuses it beside a tier whose loads may fail; else nothing may."""
    tokens, in_vllm, chunk = 300, 240, 256
    adapter_type = vllm_v1_adapter.LMCacheConnectorV1Impl
    metadata = vllm_v1_adapter.LMCacheConnectorMetadata()
    metadata.requests = [
        vllm_v1_adapter.ReqMeta(
            req_id="request",
            token_ids=list(range(tokens)),
            slot_mapping=torch.arange(tokens),
            load_spec=vllm_v1_adapter.LoadSpec(in_vllm, tokens, can_load=True),
        )
    ]
    failed: list[int] = []

    def retrieve_all_but_the_last(tokens: list[int], mask: torch.Tensor, **_: Any) -> torch.Tensor:
        failed.append(len(tokens) - chunk)
        return mask & (torch.arange(len(tokens)) < chunk)

    adapter = SimpleNamespace(
        kv_caches={"layer": None},
        _parent=SimpleNamespace(_get_connector_metadata=lambda: metadata),
        lmcache_engine=SimpleNamespace(
            retrieve=retrieve_all_but_the_last, lookup_unpin=lambda request: None
        ),
        _stats_monitor=MagicMock(),
        device="cpu",
        _lmcache_chunk_size=chunk,
        _block_size=16,
        use_layerwise=False,
        async_loading=False,
        _invalid_block_ids=set(),
    )
    adapter_type.start_load_kv(adapter, SimpleNamespace(attn_metadata=object()))
    assert failed == [44]
    assert adapter._invalid_block_ids == set()


def test_the_manager_keeps_why_it_failed() -> None:
    factory = SimpleNamespace(get_or_create_metadata=lambda: 1 / 0)
    failed = manager.LMCacheManager(LMCacheEngineConfig.from_defaults(), factory)
    assert failed._init_failed is True
    assert failed._init_failed_reason.strip().endswith("ZeroDivisionError: division by zero")
    assert failed.lmcache_engine is None


def test_vllms_connector_keeps_the_adapter() -> None:
    assert "self._lmcache_engine = cls(" in inspect.getsource(LMCacheConnectorV1.__init__)
    assert list(inspect.signature(LMCacheConnectorV1.__init__).parameters) == [
        "self",
        "vllm_config",
        "role",
        "kv_cache_config",
    ]


def test_every_key_of_lmcache_has_a_type_that_we_parse() -> None:
    examples = {"int": "3", "float": "3.5", "bool": "true", "str": "a", "list": "1,2", "dict": "{}"}
    examples_of = {"hidden_states_retrieve_mode": "prefix_strict"}
    table = keys.table()
    assert len(table) > 50
    for key in table.values():
        kind = next(name for name in examples if name in str(key.type).lower())
        text = examples["list" if "list" in str(key.type) else kind]
        assert parse(key, examples_of.get(key.name, text)) is not None, key.name


def test_no_setting_of_ours_has_the_name_of_one_of_lmcaches() -> None:
    assert not {setting.name for setting in SETTINGS} & set(_CONFIG_DEFINITIONS)


def test_connectors_are_made_as_lmcache_makes_them() -> None:
    assert list(inspect.signature(connectors.ConnectorContext.__init__).parameters) == [
        "self",
        "url",
        "loop",
        "local_cpu_backend",
        "config",
        "metadata",
        "plugin_name",
    ]
    manager_ = connectors.ConnectorManager("blackhole://", None, None)
    adapter = next(each for each in manager_.adapters if each.can_parse("blackhole://"))
    assert adapter.create_connector(manager_.context).support_batched_get() is False


def test_connectors_have_what_the_remote_tier_calls() -> None:
    for name in ("exists", "get", "put", "batched_get", "ping", "close"):
        assert inspect.iscoroutinefunction(getattr(RemoteConnector, name)), name
    for name in ("support_ping", "support_batched_get", "remove_sync"):
        assert callable(getattr(RemoteConnector, name)), name
    source = inspect.getsource(RemoteConnector.__init__)
    for wanted in ("get_shapes()", "get_dtypes()", "use_mla", "chunk_size", "get_num_groups()"):
        assert f"metadata.{wanted}" in source, wanted


def test_connectors_keep_what_the_remote_tier_reaches_for() -> None:
    wanted = {
        "lm_connector": ["self.client_socket.connect((host, port))"],
        "s3_connector": [
            "async def _get_object_size_async(self, key_str: str) -> int:",
            "self.object_size_cache: dict[str, int] = {}",
        ],
        "azure_connector": [
            "async def _get_blob_size_async(self, key_str: str) -> int:",
            "self.object_size_cache: dict[str, int] = {}",
        ],
        "mooncakestore_connector": [
            "self.store = MooncakeDistributedStore()",
            'config_file_path = os.getenv("MOONCAKE_CONFIG_PATH")',
            "MooncakeStoreConfig.load_from_lmcache_config(",
            "store.setup(setup_dict)",
        ],
        "infinistore_connector": ["self.rdma_conn = infinistore.InfinityConnection(config)"],
    }
    directory = Path(connectors.__path__[0])
    if not (directory / "azure_adapter.py").exists():  # a store that not every version has
        del wanted["azure_connector"]
    for module, lines in wanted.items():
        source = (directory / f"{module}.py").read_text()
        for line in lines:
            assert line in source, (module, line)


def test_a_value_is_read_from_and_written_to_as_lmcaches_own() -> None:
    values = tier_values.Values(None, None, 4096)
    value = values.allocate([torch.Size([4096])], [torch.uint8], busy_loop=False)
    assert value.byte_array.nbytes == len(value.byte_array) == value.get_size() == 4096
    assert value.get_physical_size() == 4096
    assert value.data_ptr % 4096 == 0
    assert value.get_shape() == value.get_shapes()[0] == torch.Size([4096])
    assert value.get_memory_format() is MemoryFormat.KV_2LTD
    value.byte_array[:3] = b"abc"
    assert bytes(TensorMemoryObj.byte_array.fget(value)[:3]) == b"abc"
    value.ref_count_up()
    value.ref_count_down()
    value.ref_count_down()  # LMCache's own would be gone
    # What looks at the memory keeps it; LMCache's own view is of an address.
    assert isinstance(value.byte_array.obj, numpy.ndarray)
    assert isinstance(value.byte_array.obj.base, torch.Tensor)
    with pytest.raises(ValueError, match="larger than a chunk"):
        values.allocate(torch.Size([4097]), torch.uint8)


def test_keys_are_such_as_every_connector_takes() -> None:
    key = tier_values.short_key("namespace" * 100 + "@1@0@ab@bfloat16@tag%value")
    assert len(key.to_string()) <= protocol.MAX_KEY_LENGTH
    assert parse_cache_key(key.to_string()) == key
    assert key != tier_values.short_key("another")
    assert isinstance(key.chunk_hash, int)


def test_the_executor_of_connectors_ends_without_waiting_for_itself() -> None:
    """Closed as LMCache closes it, from its own loop, it waits for ever."""
    source = inspect.getsource(AsyncPQExecutor.shutdown)
    assert "run_coroutine_threadsafe" in source

    async def end() -> None:
        connector = SimpleNamespace(pq_executor=AsyncPQExecutor(asyncio.get_running_loop()))
        private_connectors.unblock_close(connector)
        await connector.pq_executor.shutdown(wait=True)

    thread = threading.Thread(target=asyncio.run, args=(end(),), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def test_configurations_are_changed_without_changing_lmcaches() -> None:
    told = {**REMOTE_PLUGIN.encode(Remote("s3://bucket", "test"), TierLimits()), "s3_region": "r"}
    told |= DISK_PLUGIN.encode(Disk(("/cache",), 1), TierLimits())
    config = LMCacheEngineConfig.from_defaults(
        remote_storage_plugins=["kserve-disk", "theirs", "kserve"],
        extra_config=told,
        save_unfull_chunk=True,
    )
    seen = tier_connectors.connector_config(config, "s3://bucket")
    assert seen.remote_storage_plugins == ["theirs"]
    assert seen.extra_config == {"s3_region": "r", "s3_num_io_threads": 8}
    assert seen.save_unfull_chunk is False
    assert config.extra_config == told
    assert config.save_unfull_chunk is True
    seen = tier_connectors.connector_config(config, "mooncakestore://master:50051")
    assert seen.extra_config["mooncake_master_server_addr"] == "master:50051"
    assert seen.extra_config["save_chunk_meta"] is True


def test_a_key_has_numbers_of_the_picture_in_the_place_of_its_tokens() -> None:
    def tokens(*pictures: str) -> list[int]:
        features = [
            SimpleNamespace(
                identifier=each, mm_position=SimpleNamespace(offset=4 + 20 * number, length=8)
            )
            for number, each in enumerate(pictures)
        ]
        request = SimpleNamespace(all_token_ids=list(range(50)), mm_features=features)
        return list(tokens_in_keys(request))  # type: ignore[arg-type]

    assert tokens() == list(range(50))
    one, other = tokens("a" * 64, "b" * 64), tokens("a" * 64, "c" * 64)
    assert one[:24] == other[:24]
    assert all(mine != theirs for mine, theirs in zip(one[24:32], other[24:32], strict=True))
    assert len(set(one[4:12])) == 8
    text = [*range(4), *range(12, 24), *range(32, 50)]
    assert [one[place] for place in text] == text
    # What LMCache looks up and stores is made by the same functions.
    for name in ("apply_mm_hashes_to_token_ids", "extract_mm_features"):
        assert getattr(vllm_v1_adapter, name) is getattr(utils, name)
