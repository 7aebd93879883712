"""Why ``kv_transfer_params`` and a connector beside ours are refused.

Each test shows a reason of ``docs/design/transfer-parameters.md`` on vLLM as it is. A test that
fails after an upgrade says that its reason is gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from vllm.config import KVTransferConfig, set_current_vllm_config
from vllm.distributed.kv_transfer.kv_connector.v1.multi_connector import MultiConnector
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from kserve_lmcache.config.engine_file import STATS_ARE_RECEIVED
from kserve_lmcache.connector.stats import StartReport
from kserve_lmcache.engine.connectors import CONNECTOR
from tests.support.peer_connector import FailingPeer, LyingPeer
from tests.support.simulated_engine import (
    BLOCK,
    SimulatedEngine,
    continuation,
    engine_config,
    kv_cache_config,
    request,
    scheduler,
    simulated,
)

PROMPT = list(range(100))
WHERE = {
    "do_remote_prefill": True,
    "remote_engine_id": "chosen",
    "remote_request_id": "chosen",
    "remote_host": "192.0.2.1",
    "remote_port": 1,
    "remote_block_ids": [[7, 8, 9]],
    "tp_size": 1,
}


@contextmanager
def answers(
    peer: type[FailingPeer | LyingPeer], directory: Path, patch: pytest.MonkeyPatch
) -> Iterator[tuple[SimulatedEngine, list[int], list[int]]]:
    """An engine with a peer, its answer by KV of the peer, and its answer by KV of our cache."""
    with simulated(directory, peer=peer, extra_config={STATS_ARE_RECEIVED: False}) as engine:
        patch.setattr(peer, "tokens", 4 * BLOCK)
        first = engine.ask("from the peer", PROMPT)
        engine.forget_local()
        patch.setattr(peer, "tokens", 0)
        before = engine.hits
        second = engine.ask("from our cache", PROMPT)
        assert engine.hits > before
        yield engine, first, second


def test_our_cache_would_keep_what_a_connector_beside_it_failed_to_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answers(FailingPeer, tmp_path, monkeypatch) as (engine, first, second):
        assert engine.failed == 4
        assert first == continuation(PROMPT, 4)  # vLLM has computed the blocks again
        assert second != continuation(PROMPT, 4)
        assert "from our cache" in engine.worker.wrong


def test_our_cache_would_keep_what_a_peer_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answers(LyingPeer, tmp_path, monkeypatch) as (engine, first, second):
        assert engine.failed == 0
        assert first == second != continuation(PROMPT, 4)
        assert "from our cache" in engine.worker.wrong


def test_vllms_own_cache_would_bring_it_into_ours_by_the_next_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = {STATS_ARE_RECEIVED: False}
    with simulated(tmp_path, peer=LyingPeer, extra_config=extra) as engine:
        ours = engine.scheduler.connector._connectors[1]
        ours.scheduler._hide("from the peer")  # our cache takes no part in this request
        monkeypatch.setattr(LyingPeer, "tokens", 4 * BLOCK)
        engine.ask("from the peer", PROMPT)
        monkeypatch.setattr(LyingPeer, "tokens", 0)
        engine.ask("from vLLM's cache", PROMPT)
        engine.forget_local()
        before = engine.hits
        answer = engine.ask("from our cache", PROMPT)
        assert engine.hits > before
        assert answer != continuation(PROMPT, 4)


@contextmanager
def scheduler_with(connector: str, directory: Path, **extra_config: Any) -> Iterator[Scheduler]:
    """vLLM's scheduler with a connector of vLLM's."""
    config = engine_config(directory, {})
    config.kv_transfer_config = KVTransferConfig(
        kv_connector=connector, kv_role="kv_both", kv_connector_extra_config=extra_config
    )
    with set_current_vllm_config(config):
        found = scheduler(config, kv_cache_config(64))
        yield found
        found.shutdown()


@pytest.fixture
def nixl(tmp_path: Path) -> Iterator[Scheduler]:
    """NIXL's connector. The library NIXL is the worker's, and is not needed."""
    with scheduler_with("NixlConnector", tmp_path) as found:
        yield found


def test_vllms_example_connector_does_not_keep_tenants_apart(tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    with scheduler_with("ExampleConnector", tmp_path, shared_storage_path=str(storage)) as found:
        example = found.connector
        ones, others = (request(name, PROMPT, cache_salt=name) for name in ("one", "other"))
        assert ones.block_hashes != others.block_hashes
        assert example.get_num_new_matched_tokens(others, 0) == (0, False)
        tokens = len(PROMPT) // BLOCK * BLOCK
        # What a worker does when it stores the first tenant's prompt.
        example._generate_foldername_debug(
            torch.tensor(ones.prompt_token_ids[:tokens]), [], create_folder=True
        )
        assert example.get_num_new_matched_tokens(others, 0) == (tokens, False)


def asking(**parameters: Any) -> Any:
    return request("any", PROMPT, extra_args={"kv_transfer_params": parameters})


def test_a_request_of_one_field_ends_an_engine_with_nixl(nixl: Scheduler) -> None:
    nixl.add_request(asking(do_remote_prefill=True))
    with pytest.raises(AssertionError) as error:
        nixl.schedule()
    assert "nixl" in str(error.traceback[-1].path)


def test_a_value_of_another_type_ends_an_engine_with_nixl(nixl: Scheduler) -> None:
    with pytest.raises(TypeError) as error:
        nixl.add_request(asking(**{**WHERE, "remote_engine_id": []}))
    assert "nixl" in str(error.traceback[-1].path)


def test_a_request_holds_blocks_and_is_never_computed_with_nixl(nixl: Scheduler) -> None:
    asked = asking(do_remote_prefill=True, remote_block_ids=[[7]])
    nixl.add_request(asked)
    for _ in range(10):
        assert nixl.schedule().kv_connector_metadata.reqs_to_recv == {}
    assert asked.status == RequestStatus.WAITING_FOR_REMOTE_KVS
    assert nixl.kv_cache_manager.get_block_ids("any")[0]


def test_a_client_chooses_the_engine_and_the_blocks_that_nixl_reads(nixl: Scheduler) -> None:
    nixl.add_request(asking(**WHERE))
    wanted = nixl.schedule().kv_connector_metadata.reqs_to_recv["any"].remote
    assert (wanted.host, wanted.port) == ("192.0.2.1", 1)
    assert wanted.block_ids == [[7, 8, 9]]


def test_nixl_refuses_the_handshake_of_the_connector_before_it(nixl: Scheduler) -> None:
    multi = MultiConnector.__new__(MultiConnector)
    ours, last = MagicMock(), MagicMock()
    ours.get_handshake_metadata.return_value = StartReport({})
    multi._connectors = [ours, nixl.connector, last]
    report = multi.get_handshake_metadata()
    assert isinstance(report, StartReport)
    with pytest.raises(ValueError, match="expects NixlHandshakePayload"):
        multi.set_xfer_handshake_metadata_pp_aware({(0, 0): report})


def test_several_connectors_cannot_report_figures_of_ours() -> None:
    with pytest.raises(ValueError, match=f"Connector '{CONNECTOR}' is not registered"):
        MultiConnector.build_kv_connector_stats({CONNECTOR: {}})
