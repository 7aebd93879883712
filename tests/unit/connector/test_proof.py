"""The proof passes for every layout, leaves the cache as it was, and catches wrong copies."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kserve_lmcache.connector.inprocess.block_connector import BlockConnector
from kserve_lmcache.connector.inprocess.start_proof import copies_of
from kserve_lmcache.connector.proof import Proof, ProofError
from tests.support.layouts import DEVICE, LAYOUTS, Cache, Sizes, cache

SIZES = Sizes(layers=3, blocks=13, tokens=16, heads=4, size=8, dtype=torch.bfloat16)
PACKED = "[blocks, heads, tokens, 2 * size] as LBHNC"
CHUNK = 4 * SIZES.tokens


def zeroed(layout: str, sizes: Sizes = SIZES) -> Cache:
    whole = cache(layout, sizes)
    for tensor in whole.tensors.values():
        torch.empty(0, dtype=torch.uint8, device=DEVICE).set_(tensor.untyped_storage()).zero_()
    return whole


def registered(whole: Cache) -> BlockConnector:
    connector = BlockConnector(whole.pages, CHUNK)
    connector.register(whole.tensors)
    return connector


def prove(whole: Cache, copy: Any = None) -> Proof:
    connector = registered(whole)
    layers = connector.cache.layers
    proof = Proof(layers, whole.pages.blocks, 4)
    memory = torch.zeros(connector.get_shape(proof.count * SIZES.tokens), dtype=torch.uint8)
    tensors = [each.tensor for each in layers]
    chunk = SimpleNamespace(tensor=memory)
    proof.run(*copies_of(copy or connector, chunk, tensors, SIZES.tokens))
    return proof


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_passes_and_leaves_the_cache_zeroed(layout: str) -> None:
    whole = zeroed(layout)
    assert prove(whole).count == 4
    assert not any(any(memory) for memory in whole.storage)


def test_what_lies_beside_is_left_as_it_was() -> None:
    whole = cache(PACKED, SIZES)
    before = whole.clone()
    prove(whole)
    kept = [
        number
        for number in range(SIZES.blocks)
        if torch.equal(
            whole.block("layer 0", number).view(torch.int16),
            before.block("layer 0", number).view(torch.int16),
        )
    ]
    assert 0 in kept
    assert len(kept) == SIZES.blocks - 8
    for number in set(range(SIZES.blocks)) - set(kept):
        assert not whole.block("layer 0", number).view(torch.int16).any()


@pytest.mark.parametrize(("blocks", "count"), [(13, 4), (9, 4), (8, 3), (3, 1), (2, 0), (1, 0)])
def test_it_takes_no_more_than_a_chunk_and_no_more_than_there_is(blocks: int, count: int) -> None:
    layers = registered(zeroed(PACKED)).cache.layers
    assert Proof(layers, blocks, 4).count == count


class WrongStride:
    """Takes ``[blocks, heads, tokens, 2 * size]`` for rows of K and of V of all heads.

    As LMCache's kernels do with vLLM's packed layout: ``[blocks, tokens, heads, size]`` twice.
    """

    def __init__(self, whole: Cache) -> None:
        row = SIZES.heads * SIZES.size
        self._slots = SIZES.blocks * SIZES.tokens
        self._rows = [
            tensor.untyped_storage() and tensor.view(-1).view(2, self._slots, row)
            for tensor in whole.tensors.values()
        ]

    def batched_from_gpu(self, memory: list[Any], starts: Any, ends: Any, **given: Any) -> None:
        memory[0].rows = [rows[:, given["slot_mapping"]].clone() for rows in self._rows]

    def batched_to_gpu(self, memory: list[Any], starts: Any, ends: Any, **given: Any) -> None:
        for rows, values in zip(self._rows, memory[0].rows, strict=True):
            rows[:, given["slot_mapping"]] = values


def test_the_wrong_stride_for_a_packed_layout_is_caught() -> None:
    whole = zeroed(PACKED)
    with pytest.raises(ProofError) as caught:
        prove(whole, WrongStride(whole))
    for part in (
        "layer 0",
        "torch.bfloat16 of shape (13, 4, 16, 16)",
        "strides (1024,",
        "byte 0 of",
    ):
        assert part in str(caught.value)


class Faulty:
    """The copy path with a fault before or after a copy."""

    def __init__(self, whole: Cache, fault: Callable[[Cache, Any, list[int]], None]) -> None:
        self._whole, self._fault = whole, fault
        self._connector = registered(whole)

    def batched_from_gpu(self, memory: Any, starts: Any, ends: Any, **given: Any) -> None:
        self._connector.batched_from_gpu(memory, starts, ends, **given)

    def batched_to_gpu(self, memory: Any, starts: Any, ends: Any, **given: Any) -> None:
        self._connector.batched_to_gpu(memory, starts, ends, **given)
        slots = given["slot_mapping"].cpu()[:: SIZES.tokens] // SIZES.tokens
        self._fault(self._whole, memory[0], slots.tolist())


def one_bit(whole: Cache, memory: Any, blocks: list[int]) -> None:
    whole.block("layer 2", blocks[-1]).view(torch.int16)[0, -1, -1, -1] ^= 1


def two_blocks_exchanged(whole: Cache, memory: Any, blocks: list[int]) -> None:
    one, other = (whole.block("layer 1", number) for number in blocks[:2])
    kept = one.clone()
    one.copy_(other)
    other.copy_(kept)


def beside(whole: Cache, memory: Any, blocks: list[int]) -> None:
    whole.block("layer 1", 0).fill_(1)


@pytest.mark.parametrize(
    ("fault", "layer", "problem"),
    [
        (one_bit, "layer 2", "what was stored did not come back"),
        (two_blocks_exchanged, "layer 1", "what was stored did not come back"),
        (beside, "layer 1", "a block beside what was loaded has changed"),
    ],
)
def test_a_fault_is_caught_and_named(
    fault: Callable[[Cache, Any, list[int]], None], layer: str, problem: str
) -> None:
    whole = zeroed(PACKED)
    with pytest.raises(ProofError, match=f"{problem}: the KV cache of {layer}, ") as caught:
        prove(whole, Faulty(whole, fault))
    if fault is one_bit:
        assert "byte 2046 of block" in str(caught.value)
        assert "1 of 8192 bytes are wrong" in str(caught.value)
    assert not any(any(memory) for memory in whole.storage)


def test_nothing_copied_at_all_is_caught() -> None:
    nothing = SimpleNamespace(
        batched_from_gpu=lambda *_, **__: 0, batched_to_gpu=lambda *_, **__: 0
    )
    with pytest.raises(ProofError, match="did not come back"):
        prove(zeroed("MLA"), nothing)
