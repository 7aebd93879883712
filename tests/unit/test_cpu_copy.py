"""Gather then scatter gives back every byte, for any shape, type and slot mapping."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_lmcache.connector.cpu_copy import (
    CPUPagedMemoryConnector,
    gather,
    keys_and_values,
    scatter,
)

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


@st.composite
def cases(draw: st.DrawFn) -> Case:
    block_size = draw(st.sampled_from([1, 4, 16, 128]))
    blocks = draw(st.integers(1, 6))
    total = block_size * blocks
    slots = draw(
        st.lists(st.integers(0, total - 1), min_size=1, max_size=min(total, 64), unique=True)
    )
    return Case(
        layers=draw(st.integers(1, 4)),
        heads=draw(st.integers(1, 4)),
        head_size=draw(st.sampled_from([1, 8, 64])),
        block_size=block_size,
        blocks=blocks,
        dtype=draw(st.sampled_from(DTYPES)),
        slots=torch.tensor(slots),
    )


def as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@settings(max_examples=300, deadline=None)
@given(case=cases())
def test_every_byte_survives(case: Case) -> None:
    source, target = case.cache(seed=1), case.cache(seed=2)
    untouched = [layer.clone() for layer in target]
    memory = case.memory()
    gather(source, case.slots, case.head_size, memory)
    scatter(memory, target, case.slots, case.head_size)

    for before, wanted, found in zip(untouched, source, target, strict=True):
        for kept, copied, result in zip(
            *(keys_and_values(layer, case.head_size) for layer in (before, wanted, found)),
            strict=True,
        ):
            for slot in range(case.blocks * case.block_size):
                block, offset = divmod(slot, case.block_size)
                expected = copied if slot in case.slots.tolist() else kept
                assert as_bytes(result[block, :, offset]) == as_bytes(expected[block, :, offset])


@settings(max_examples=50, deadline=None)
@given(case=cases())
def test_a_memory_object_holds_the_tokens_in_order(case: Case) -> None:
    cache = case.cache(seed=3)
    memory = case.memory()
    gather(cache, case.slots, case.head_size, memory)
    for number, layer in enumerate(cache):
        for kind, paged in enumerate(keys_and_values(layer, case.head_size)):
            for token, slot in enumerate(case.slots.tolist()):
                block, offset = divmod(slot, case.block_size)
                expected = paged[block, :, offset].flatten()
                assert as_bytes(memory[kind, number, token]) == as_bytes(expected)


@settings(max_examples=50, deadline=None)
@given(case=cases(), cached=st.integers(0, 64))
def test_a_load_leaves_vllms_own_prefix_alone(case: Case, cached: int) -> None:
    source, target = case.cache(seed=1), case.cache(seed=2)
    memory = case.memory()
    gather(source, case.slots, case.head_size, memory)
    expected = [layer.clone() for layer in target]
    scatter(memory[:, :, cached:], expected, case.slots[cached:], case.head_size)

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


def test_an_unknown_layout_is_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"shape \(4, 16, 576\) with heads of 64"):
        keys_and_values(torch.zeros(4, 16, 576), head_size=64)


@pytest.mark.parametrize(
    ("settings_", "reason"),
    [
        ({"use_mla": True}, "multi-head latent attention"),
        ({"use_layerwise": True}, "use_layerwise is set"),
        ({"enable_blending": True}, "enable_blending is set"),
    ],
)
def test_what_cannot_be_copied_is_refused_with_its_reason(
    settings_: dict[str, bool], reason: str
) -> None:
    flags = {"use_mla": False, "use_layerwise": False, "enable_blending": False, **settings_}
    both = SimpleNamespace(kv_shape=(1, 2, 256, 1, 64), **flags)
    with pytest.raises(NotImplementedError, match=reason):
        CPUPagedMemoryConnector.from_metadata(both, both)
