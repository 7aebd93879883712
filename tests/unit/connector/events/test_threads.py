"""The threads of a worker and of the scheduler's process, with the socket between them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256_cbor
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.request import Request

from kserve_lmcache.compat import vllm_events
from kserve_lmcache.compat.lmcache.pictures import tokens_in_keys
from kserve_lmcache.connector import worker as worker_module
from kserve_lmcache.connector.events import scheduler as scheduler_module
from kserve_lmcache.connector.events import worker as events_module
from kserve_lmcache.connector.events.publisher import TiersCleared
from kserve_lmcache.connector.events.scheduler import SchedulerEvents
from kserve_lmcache.connector.events.socket import address
from kserve_lmcache.connector.events.worker import WorkerEvents, worker_events
from kserve_lmcache.connector.worker import WorkerPart
from kserve_lmcache.tiers.guard import daemon_threads
from tests.support.waiting import until

BLOCK, CHUNK = 2, 4


def names_of(tokens: list[int]) -> list[str]:
    """Hashes that LMCache could have."""
    return ["-".join(map(str, tokens[: end + CHUNK])) for end in range(0, len(tokens), CHUNK)]


@dataclass
class Reader:
    """A publisher that keeps what a reader would know."""

    is_open: bool = True
    fails: int = 0  # batches from now on
    stored: dict[tuple[str, int], Any] = field(default_factory=dict)
    clearings: int = 0

    def publish(self, batch: Any) -> None:
        if self.fails:
            self.fails -= 1
            raise RuntimeError("a fault")
        for event in batch.events:
            if isinstance(event, TiersCleared):
                self.clearings += 1
                self.stored.clear()
            elif isinstance(event, vllm_events.BlockStored):
                for name in event.block_hashes:
                    assert (event.medium, name) not in self.stored
                    self.stored[(event.medium, name)] = event
            else:
                for name in event.block_hashes:
                    del self.stored[(event.medium, name)]

    def chunks(self) -> int:
        return len(self.stored) * BLOCK // CHUNK


@dataclass
class Both:
    """Both ends."""

    scheduler: SchedulerEvents
    worker: WorkerEvents
    reader: Reader

    def add(self, tokens: list[int], **options: Any) -> Request:
        """Let a request come, whose hashes the thread computes."""
        made = request(tokens, **options)
        self.scheduler.add(made)
        return made

    def store(self, tokens: list[int], present: bool = True) -> None:
        """Let the worker's local tier have the chunks of a prompt, or lose them."""
        for name in names_of(tokens):
            self.worker.changes.of("local")(f"m@1@0@{name}@half", present)


def request(tokens: list[int], **options: Any) -> Request:
    init_none_hash(sha256_cbor)
    hasher = get_request_block_hasher(BLOCK, sha256_cbor)
    parameters = SamplingParams(max_tokens=1)
    return Request("name", tokens, parameters, None, block_hasher=hasher, **options)


@contextmanager
def running(where: str) -> Iterator[Both]:
    scheduler = SchedulerEvents(where, 1, CHUNK, BLOCK, {"group_idx": 0}, names_of)
    scheduler.publisher = reader = Reader()  # type: ignore[assignment]
    worker = WorkerEvents(0, where)
    worker.start(lambda: None, lambda: True)
    try:
        yield Both(scheduler, worker, reader)
    finally:
        worker.stop()
        scheduler.stop()


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Both]:
    monkeypatch.setattr(daemon_threads, "_RESTART_SECONDS", 0.1)
    with running(address(tmp_path, 0)) as found:
        yield found


def prompts(number: int) -> list[list[int]]:
    return [[10 * each + place for place in range(2 * CHUNK)] for each in range(number)]


def test_what_a_worker_has_is_announced_and_what_it_loses(both: Both) -> None:
    (tokens,) = prompts(1)
    both.add(tokens)
    both.store(tokens)
    until(lambda: both.reader.chunks() == 2)
    both.store(tokens, present=False)
    until(lambda: both.reader.chunks() == 0)
    assert both.reader.clearings == 0


def test_a_picture_is_named_by_its_keys_and_announced_by_its_tokens(both: Both) -> None:
    tokens = [1, 2, 3, 9, 9, 9, 9, 4]
    picture = MultiModalFeatureSpec(
        None, "image", "a" * 64, PlaceholderRange(offset=3, length=4), None
    )
    made = both.add(tokens, mm_features=[picture])
    keyed = list(tokens_in_keys(made))
    assert keyed != tokens
    both.store(keyed)
    until(lambda: both.reader.chunks() == 2)
    events = list({id(each): each for each in both.reader.stored.values()}.values())
    assert [token for each in events for token in each.token_ids] == tokens
    names = [name for each in events for name in each.block_hashes]
    assert names == vllm_events.external_hashes(made.block_hashes)
    assert any("a" * 64 in str(each.extra_keys) for each in events)


def test_a_worker_whose_thread_failed_tells_all_anew(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what left its tiers, and what came, while messages were lost."""
    first, second, third = prompts(3)
    for tokens in (first, second, third):
        both.add(tokens)
    both.store(first)
    both.store(second)
    until(lambda: both.reader.chunks() == 4)
    failed = 0

    def send(*_: Any) -> None:
        nonlocal failed
        failed += 1
        raise RuntimeError("a fault")

    with monkeypatch.context() as patch:
        patch.setattr(both.worker, "_send", send)
        both.store(first, present=False)
        both.store(third)
        until(lambda: failed > 1)
    until(lambda: both.reader.chunks() == 4)
    held = vllm_events.external_hashes(
        itertools.chain(request(second).block_hashes, request(third).block_hashes)
    )
    until(lambda: {name for _, name in both.reader.stored} == set(held))


def test_a_scheduler_whose_thread_failed_tells_all_anew(both: Both) -> None:
    first, second, third = prompts(3)
    for tokens in (first, second, third):
        both.add(tokens)
    both.store(first)
    until(lambda: both.reader.chunks() == 2)
    both.reader.fails = 1
    both.store(second)  # its message is lost
    until(lambda: both.reader.clearings == 1)
    until(lambda: both.reader.chunks() == 4)
    both.reader.fails = 1
    both.store(first, present=False)
    until(lambda: both.reader.clearings == 2)
    until(lambda: both.reader.chunks() == 2)
    both.store(third)
    until(lambda: both.reader.chunks() == 4)


def test_what_lay_in_the_socket_of_a_scheduler_that_failed_is_told_anew(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread has not seen the message at all."""
    (tokens,) = prompts(1)
    both.add(tokens)
    until(lambda: not both.scheduler._prompts)
    real: Callable[..., Any] = scheduler_module.Receiver.receive
    lost: list[Any] = []

    def receive(self: Any, seconds: float) -> Any:
        message = real(self, seconds)
        if message is not None and message.entries and not lost:
            lost.append(message)
            raise RuntimeError("a fault")
        return message

    monkeypatch.setattr(scheduler_module.Receiver, "receive", receive)
    both.store(tokens)
    until(lambda: both.reader.chunks() == 2)
    assert lost


def test_a_prompt_that_cannot_be_hashed_stops_nothing(both: Both) -> None:
    (tokens,) = prompts(1)
    both.scheduler._hash_tokens = lambda tokens: 1 // 0  # type: ignore[assignment, return-value]
    both.add(tokens)
    both.scheduler._hash_tokens = names_of
    both.add(tokens)
    both.store(tokens)
    until(lambda: both.reader.chunks() == 2)
    assert both.reader.clearings == 0


def config_of(engine: int) -> Any:
    """VLLM's, of an engine of a dense model in a server with several."""
    parallel = SimpleNamespace(
        data_parallel_rank=0, data_parallel_index=engine, world_size=2, rank=1
    )
    return SimpleNamespace(
        parallel_config=parallel,
        cache_config=SimpleNamespace(block_size=BLOCK),
        device_config=SimpleNamespace(device_type="cpu"),
        kv_transfer_config=SimpleNamespace(kv_connector_extra_config={}),
        kv_events_config=SimpleNamespace(enable_kv_cache_events=True, publisher="zmq"),
    )


def test_the_engines_of_a_server_have_sockets_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "engine.json"
    monkeypatch.setattr(events_module, "configuration_file", lambda: file)
    monkeypatch.setattr(scheduler_module, "configuration_file", lambda: file)
    made: list[Any] = []

    def make(*given: Any) -> Any:
        made.append(given)
        return SimpleNamespace(make_publisher=None)

    monkeypatch.setattr(scheduler_module, "SchedulerEvents", make)
    monkeypatch.setattr(vllm_events, "spec_of", lambda config: {})
    monkeypatch.setattr(vllm_events, "use_publisher", lambda config, make: None)
    monkeypatch.setattr(worker_module, "worker_cache", lambda *_: SimpleNamespace())
    ranks = []
    for engine in range(2):
        config = config_of(engine)
        events = worker_events(config)
        assert events is not None
        assert events._where == f"ipc://{tmp_path}/events-{engine}"
        scheduler_module.scheduler_events(config, None, CHUNK, names_of, None)  # type: ignore[arg-type]
        assert made[-1][0] == events._where
        ranks.append(WorkerPart(config, None)._rank)  # type: ignore[arg-type]
    assert ranks == [1, 3]
