"""The names of vLLM's events and of its publisher that :mod:`.compat.vllm_events` uses."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config.kv_events import KVEventsConfig
from vllm.distributed.kv_events import EventPublisherFactory, ZmqEventPublisher
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256_cbor
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from kserve_lmcache.compat import vllm_events


def test_the_publisher_has_what_ours_uses() -> None:
    source = inspect.getsource(ZmqEventPublisher)
    for name in ("_pub", "_replay", "_buffer", "_seq_gen", "_topic_bytes", "_event_queue"):
        assert f"self.{name} " in source or f"self.{name}:" in source, name
    assert "target=self._publisher_thread" in source
    assert "(seq, payload)" in source
    assert 'to_bytes(8, "big")' in source


def test_the_scheduler_makes_its_connector_before_its_publisher() -> None:
    source = inspect.getsource(Scheduler.__init__)
    assert source.index("create_connector(") < source.index("EventPublisherFactory.create(")


def test_vllm_makes_the_publisher_that_it_is_told() -> None:
    config: Any = SimpleNamespace(kv_events_config=KVEventsConfig(enable_kv_cache_events=True))
    assert vllm_events.are_wanted(config)
    made: list[dict[str, Any]] = []

    def make(**options: Any) -> Any:
        made.append(options)
        return "publisher"

    vllm_events.use_publisher(config, make)
    assert EventPublisherFactory.create(config.kv_events_config, 3) == "publisher"
    assert made[0]["data_parallel_rank"] == 3
    assert made[0]["endpoint"] == "tcp://*:5557"
    assert vllm_events.are_wanted(config)


@pytest.mark.parametrize("events", [None, KVEventsConfig(), KVEventsConfig(publisher="null")])
def test_without_events_nothing_is_wanted(events: KVEventsConfig | None) -> None:
    config: Any = SimpleNamespace(kv_events_config=events)
    assert not vllm_events.are_wanted(config)


def test_extra_keys_are_as_vllm_publishes_them() -> None:
    init_none_hash(sha256_cbor)
    hasher = get_request_block_hasher(4, sha256_cbor)
    parameters = SamplingParams(max_tokens=1)
    plain = Request("a", list(range(12)), parameters, None, block_hasher=hasher)
    assert vllm_events.extra_keys(plain, 3, 4) is None
    salted = Request("b", list(range(12)), parameters, None, block_hasher=hasher, cache_salt="s")
    assert vllm_events.extra_keys(salted, 3, 4) == [("s",), None, None]
    hashes = vllm_events.external_hashes(salted.block_hashes)
    assert len(hashes) == 3
    assert all(isinstance(each, int) for each in hashes)
