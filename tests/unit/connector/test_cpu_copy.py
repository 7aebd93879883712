"""Gather then scatter gives back every byte, for any shape, type and blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_lmcache.connector.cpu_copy import CPUPagedMemoryConnector, gather, scatter

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.uint8)


@dataclass
class Case:
    layers: int
    heads: int
    head_size: int
    block_size: int
    blocks: int
    dtype: torch.dtype
    slots: torch.Tensor

    def cache(self, seed: int) -> list[torch.Tensor]:
        shape = (self.blocks, self.heads, self.block_size, 2 * self.head_size)
        generator = torch.Generator().manual_seed(seed)
        size = torch.empty(shape, dtype=self.dtype).untyped_storage().nbytes()
        return [
            torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
            .view(self.dtype)
            .view(shape)
            for _ in range(self.layers)
        ]

    def memory(self) -> torch.Tensor:
        return torch.zeros(
            (2, self.layers, len(self.slots), self.heads * self.head_size), dtype=self.dtype
        )


def slots_of(blocks: list[int], block_size: int) -> torch.Tensor:
    return torch.cat([torch.arange(block_size) + block * block_size for block in blocks])


@st.composite
def cases(draw: st.DrawFn) -> Case:
    block_size = draw(st.sampled_from([1, 4, 16, 128]))
    blocks = draw(st.integers(1, 6))
    chosen = draw(st.lists(st.integers(0, blocks - 1), min_size=1, max_size=blocks, unique=True))
    return Case(
        layers=draw(st.integers(1, 4)),
        heads=draw(st.integers(1, 4)),
        head_size=draw(st.sampled_from([1, 8, 64])),
        block_size=block_size,
        blocks=blocks,
        dtype=draw(st.sampled_from(DTYPES)),
        slots=slots_of(chosen, block_size).to(draw(st.sampled_from((torch.int64, torch.int32)))),
    )


def as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@settings(max_examples=300, deadline=None)
@given(case=cases())
def test_every_byte_survives(case: Case) -> None:
    source, target = case.cache(seed=1), case.cache(seed=2)
    expected = [layer.clone() for layer in target]
    chosen = {slot // case.block_size for slot in case.slots.tolist()}
    for wanted, layer in zip(expected, source, strict=True):
        for block in chosen:
            wanted[block] = layer[block]
    memory = case.memory()
    gather(source, case.slots, memory)
    scatter(memory, target, case.slots)
    assert [as_bytes(layer) for layer in target] == [as_bytes(layer) for layer in expected]


@settings(max_examples=50, deadline=None)
@given(case=cases())
def test_a_memory_object_begins_with_that_of_a_prefix(case: Case) -> None:
    cache, memory = case.cache(seed=3), case.memory()
    gather(cache, case.slots, memory)
    for tokens in range(0, len(case.slots), case.block_size):
        prefix = memory[:, :, :tokens].clone().zero_()
        gather(cache, case.slots[:tokens], prefix)
        assert as_bytes(prefix) == as_bytes(memory[:, :, :tokens])


@settings(max_examples=50, deadline=None)
@given(case=cases(), cached_blocks=st.integers(0, 6))
def test_a_load_leaves_vllms_own_prefix_alone(case: Case, cached_blocks: int) -> None:
    cached = cached_blocks * case.block_size
    source, target = case.cache(seed=1), case.cache(seed=2)
    memory = case.memory()
    gather(source, case.slots, memory)
    expected = [layer.clone() for layer in target]
    scatter(memory[:, :, cached:], expected, case.slots[cached:])

    connector = CPUPagedMemoryConnector(case.layers, case.heads, case.head_size)
    connector.batched_to_gpu(
        [SimpleNamespace(tensor=memory)],
        [0],
        [len(case.slots)],
        kvcaches=target,
        slot_mapping=case.slots,
        vllm_cached_tokens=cached,
    )
    assert [as_bytes(layer) for layer in target] == [as_bytes(layer) for layer in expected]


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
    layers, memory = [torch.zeros(3, 1, 4, 16)], torch.zeros(2, 1, len(slots), 8)
    for copy in (
        lambda: gather(layers, torch.tensor(slots), memory),
        lambda: scatter(memory, layers, torch.tensor(slots)),
    ):
        with pytest.raises(ValueError, match="slots are not whole blocks of 4"):
            copy()


@pytest.mark.parametrize(
    "layer",
    [
        torch.zeros(4, 16, 576),
        torch.zeros(4, 16, 2, 16).transpose(1, 2),
    ],
)
def test_an_unknown_layout_is_refused(layer: torch.Tensor) -> None:
    with pytest.raises(NotImplementedError, match=r"layer of shape \(4, .*cannot be copied"):
        CPUPagedMemoryConnector(layers=1, heads=2, head_size=8).check([layer])


@pytest.mark.parametrize(
    ("layers", "heads", "head_size"), [(2, 2, 8), (3, 4, 8), (3, 2, 16), (0, 2, 8)]
)
def test_a_cache_of_another_shape_than_announced_is_refused(
    layers: int, heads: int, head_size: int
) -> None:
    """A model may have other heads than its configuration says, in all layers or in some."""
    announced = CPUPagedMemoryConnector(layers=3, heads=2, head_size=8)
    like = [torch.zeros(4, 2, 16, 16) for _ in range(3)]
    announced.check(like)
    other = [torch.zeros(4, heads, 16, 2 * head_size) for _ in range(layers)]
    with pytest.raises(NotImplementedError, match=r"configuration says 3 of \[\(2, 16\)\]"):
        announced.check(other)
