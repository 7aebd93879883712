"""What LMCache calls copies whole blocks, and never vLLM's own prefix."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_lmcache.connector.copy.pages import Page, Pages
from kserve_lmcache.connector.inprocess.block_connector import BlockConnector
from tests.support.layouts import DEVICE, LAYOUTS, Cache, Sizes, cache

SIZES = Sizes(layers=2, blocks=13, tokens=4, heads=2, size=8, dtype=torch.bfloat16)
CHUNK = 8


def connector_of(whole: Cache, chunk: int = CHUNK) -> BlockConnector:
    connector = BlockConnector(whole.pages, chunk)
    connector.register(whole.tensors)
    return connector


def slots_of(blocks: Sequence[int], dtype: torch.dtype = torch.int64) -> torch.Tensor:
    rows = [torch.arange(SIZES.tokens) + block * SIZES.tokens for block in blocks]
    return torch.cat(rows).to(dtype).to(DEVICE)


def memory_object(connector: BlockConnector, tokens: int) -> Any:
    memory = torch.zeros(connector.get_shape(tokens), dtype=torch.uint8)
    return SimpleNamespace(tensor=memory.pin_memory() if DEVICE == "cuda" else memory)


@settings(max_examples=100, deadline=None)
@given(
    layout=st.sampled_from([*LAYOUTS]),
    order=st.permutations(range(SIZES.blocks)),
    cached=st.integers(0, 8),
    dtype=st.sampled_from([torch.int64, torch.int32]),
)
def test_a_load_leaves_vllms_own_prefix_alone(
    layout: str, order: list[int], cached: int, dtype: torch.dtype
) -> None:
    source, target = cache(layout, SIZES, seed=1), cache(layout, SIZES, seed=2)
    blocks, starts = order[:6], [0, 8, 16]
    slots, ends = slots_of(blocks, dtype), [8, 16, 24]
    expected = target.clone()
    for name in source.tensors:
        for number in blocks[cached:]:
            expected.block(name, number).copy_(source.block(name, number))
    one, other = connector_of(source), connector_of(target)
    memory = [memory_object(one, CHUNK) for _ in starts]
    one.batched_from_gpu(memory, starts, ends, slot_mapping=slots)
    other.batched_to_gpu(
        memory, starts, ends, slot_mapping=slots, vllm_cached_tokens=cached * SIZES.tokens
    )
    assert target.storage == expected.storage


@pytest.mark.parametrize(
    "slots",
    [
        range(5),  # a block and a part of the next
        range(2, 6),  # the end of one and the beginning of the next
        (0, 1, 3, 2),
        (0, 1, 2, 3, 4, 5, 6, 11),
    ],
)
def test_a_part_of_a_block_is_refused(slots: Sequence[int]) -> None:
    connector = connector_of(cache("MLA", SIZES))
    memory = memory_object(connector, len(slots))
    for copy in (connector.from_gpu, connector.to_gpu):
        with pytest.raises(ValueError, match="slots are not whole blocks of 4"):
            copy(memory, 0, len(slots), slot_mapping=torch.tensor(slots))


def test_chunks_must_be_whole_blocks() -> None:
    with pytest.raises(NotImplementedError, match="chunk of 10 tokens is no whole number"):
        connector_of(cache("MLA", SIZES), chunk=10)


def test_a_block_must_have_whole_bytes_for_each_token() -> None:
    with pytest.raises(NotImplementedError, match="4 tokens has 10 bytes"):
        BlockConnector(Pages(7, {"layer": Page(4, 10, 1)}), 8)
