"""A worker proves at its start that LMCache gives back what it was given, through every tier."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lmcache.v1.memory_management import MemoryObj
from vllm.distributed.kv_transfer.kv_connector.v1.lmcache_connector import LMCacheConnectorV1

from kserve_lmcache.config.stores import Disk, Remote
from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.connector.inprocess.start_proof import prove
from kserve_lmcache.connector.proof import ProofError
from kserve_lmcache.connector.trial import trial
from kserve_lmcache.metrics.snapshots import NOT_PROVEN
from tests.support.lmcache_engine import BLOCKS, NAMES, PAGES, use
from tests.support.replica import Replica, pages, replica
from tests.support.simulated_engine import LAYERS, SimulatedEngine, simulated
from tests.support.stores import Store

pytestmark = pytest.mark.usefixtures("same_keys")


def proven(one: Replica) -> str:
    layers = [torch.zeros_like(layer) for layer in pages(0)]
    use(one.engine, layers)
    adapter: Any = SimpleNamespace(lmcache_engine=one.engine, config=one.engine.config)
    return prove(adapter, dict(zip(NAMES, layers, strict=True)), PAGES, one.connectors)


def free_bytes(one: Replica) -> int:
    allocator = one.engine.storage_manager.storage_backends["LocalCPUBackend"].memory_allocator
    return int(allocator.pin_allocator.total_allocated_size)


def test_the_copy_and_every_tier_are_proven(server: Store, remote: Remote, tmp_path: Path) -> None:
    with replica(remote, disk=Disk((str(tmp_path),), 2**30)) as one:
        before = free_bytes(one)
        said = proven(one).split("; ")
        assert said[0].startswith(f"4 of {BLOCKS} blocks of 2 layers came back, 6144 bytes in ")
        for name, words in zip(("disk", "remote"), said[1:], strict=True):
            assert words.startswith(f"{name} tier: ")
            assert words.endswith(" ms")
            assert one.count("chunks_written", name) == one.count("failures", name) == 0
        assert free_bytes(one) == before
    assert server.client().keys("*proof*") == []


def test_a_tier_that_is_not_up_is_told_and_no_failure(server: Store, remote: Remote) -> None:
    with replica(remote) as one:
        one.tier._breaker.stop()
        assert "remote tier: not up (" in proven(one)


def test_a_tier_that_gives_back_other_bytes_is_a_failure(
    server: Store, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    with replica(remote) as one:
        store = one.tier._executors["write"]
        real = type(store).call

        def damaged(self: Any, operation: Any, seconds: float) -> Any:
            found = real(self, operation, seconds)
            for key in server.client().keys("*proof*"):
                server.client().setrange(key, 200, b"damaged")
            return found

        monkeypatch.setattr(type(store), "call", damaged)
        with pytest.raises(ProofError, match="did not come back from the remote tier"):
            proven(one)


def test_no_room_is_told(remote: Remote) -> None:
    with replica(remote, limits=TierLimits(lookup=5, load=20), local_gib=0.001) as one:
        held: list[MemoryObj] = []
        backend = one.engine.storage_manager.storage_backends["LocalCPUBackend"]
        metadata = one.engine.metadata
        while (
            memory := backend.allocate(
                metadata.get_shapes(), metadata.get_dtypes(), busy_loop=False
            )
        ) is not None:
            held.append(memory)
        assert proven(one).startswith(f"{NOT_PROVEN}: LMCache's local CPU tier has no room")
        for memory in held:
            memory.ref_count_down()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[SimulatedEngine]:
    with simulated(tmp_path) as engine:
        yield engine


def test_a_worker_reports_its_proof(engine: SimulatedEngine) -> None:
    state = engine.worker.connector.worker.state()
    assert state["failure"] == ""
    assert f"2 of 64 blocks of {LAYERS} layers came back" in state["proof"]
    assert state["moments"]["proven"] >= state["moments"]["cached"]


class WrongStride:
    """LMCache's kernels take a packed layout for rows of K and rows of V of all heads."""

    def batched_from_gpu(self, memory: Any, starts: Any, ends: Any, **given: Any) -> None:
        self._rows = [self._of(layer)[:, given["slot_mapping"]] for layer in given["kvcaches"]]

    def batched_to_gpu(self, memory: Any, starts: Any, ends: Any, **given: Any) -> None:
        for layer, rows in zip(given["kvcaches"], self._rows, strict=True):
            self._of(layer)[:, given["slot_mapping"]] = rows

    def _of(self, layer: torch.Tensor) -> torch.Tensor:
        blocks, heads, tokens, content = layer.shape
        return layer.view(2, blocks * tokens, heads * content // 2)


def test_a_wrong_copy_turns_offloading_off_and_says_why(
    engine: SimulatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # LMCache, which has begun its services already, must not begin them again.
    monkeypatch.setattr(LMCacheConnectorV1, "register_kv_caches", lambda *_: None)
    engine.adapters[1].lmcache_engine.gpu_connector = WrongStride()
    connector = engine.worker.connector
    connector.register_kv_caches(engine.worker.cache)
    failure = connector.worker.state()["failure"]
    assert failure.startswith("ProofError: what was stored did not come back: the KV cache of ")
    for part in ("model.layers.0.self_attn", "shape (64, 2, 16, 16)", "strides (512,", ": byte "):
        assert part in failure
    # Requests go on without it.
    prompt = list(range(100))
    assert len(engine.ask("after", prompt)) == 4


def test_the_trial_of_the_doctor_needs_no_engine() -> None:
    said = trial()
    assert said.startswith("on cpu, packed layout: 16 of 67 blocks of 4 layers came back, ")
    assert "; split layout: 16 of 67 blocks of 4 layers came back, " in said
