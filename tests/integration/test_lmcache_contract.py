"""What we touch of LMCache's internals is there and behaves as we rely on."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from lmcache.integration.vllm import vllm_service_factory, vllm_v1_adapter
from lmcache.integration.vllm.utils import ENGINE_NAME
from lmcache.v1 import manager
from lmcache.v1.cache_engine import LMCacheEngine, LMCacheEngineBuilder
from lmcache.v1.config import _CONFIG_DEFINITIONS, LMCacheEngineConfig
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.offload_server.zmq_server import ZMQOffloadServer
from vllm.distributed.kv_transfer.kv_connector.v1.lmcache_connector import LMCacheConnectorV1

from kserve_lmcache.config import keys
from kserve_lmcache.config.values import parse
from kserve_lmcache.connector.cpu_copy import CPUPagedMemoryConnector
from kserve_lmcache.connector.lmcache_engine import end_offload_server, load_nothing
from kserve_lmcache.settings import SETTINGS

LAYERS, HEADS, HEAD_SIZE, CHUNK, BLOCK = 2, 3, 8, 16, 4


@pytest.fixture
def engine() -> Iterator[LMCacheEngine]:
    config = LMCacheEngineConfig.from_defaults(chunk_size=CHUNK, max_local_cpu_size=0.05)
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
        ENGINE_NAME,
        config,
        metadata,
        CPUPagedMemoryConnector.from_metadata(config, metadata),
        lambda tensor, source: None,
        lambda value, source: value,
    )
    engine.post_init()
    yield engine
    LMCacheEngineBuilder.destroy(ENGINE_NAME)


def test_an_engine_with_our_copy_stores_and_loads(engine: LMCacheEngine) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (8, HEADS, BLOCK, 2 * HEAD_SIZE)
    source = [torch.randn(shape, generator=generator) for _ in range(LAYERS)]
    target = [torch.zeros(shape) for _ in range(LAYERS)]
    tokens = torch.arange(2 * CHUNK)
    slots = torch.randperm(2 * CHUNK, generator=generator)
    engine.store(tokens, kvcaches=source, slot_mapping=slots, req_id="store")
    assert engine.lookup(tokens, lookup_id="load", pin=True) == 2 * CHUNK
    mask = engine.retrieve(tokens, kvcaches=target, slot_mapping=slots, req_id="load")
    assert int(mask.sum()) == 2 * CHUNK
    for stored, loaded in zip(source, target, strict=True):
        assert torch.equal(stored, loaded)


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


def test_a_lookup_that_finds_nothing_leaves_what_we_leave() -> None:
    source = inspect.getsource(vllm_v1_adapter.LMCacheConnectorV1Impl)
    assert "self.load_specs[req_id] = LoadSpec(" in source
    assert "load_spec = self.load_specs.pop(req_id, None)" in source
    adapter = SimpleNamespace(load_specs={})
    load_nothing(adapter, "request", computed_tokens=128)
    found = adapter.load_specs["request"]
    assert (found.vllm_cached_tokens, found.lmcache_cached_tokens) == (128, 0)
    assert found.can_load is False


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


def test_what_lmcache_reads_outside_its_table_is_found_in_its_source() -> None:
    assert {"LMCACHE_LOG_LEVEL", "LMCACHE_TRACK_USAGE"} <= keys.other_variables()
