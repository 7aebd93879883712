"""Gather then scatter gives back every byte and touches no other, in every layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_lmcache.connector.copy.layout import UnknownLayoutError
from kserve_lmcache.connector.copy.paged_cache import _LARGE_RUN, PagedCache
from tests.support.layouts import DEVICE, LAYOUTS, Sizes, cache, random_bytes, sizes


def some_blocks(data: st.DataObject, blocks: int) -> list[int]:
    chosen = st.lists(st.integers(0, blocks - 1), min_size=1, max_size=blocks, unique=True)
    return data.draw(chosen)


def memory(paged: PagedCache, blocks: int) -> torch.Tensor:
    return torch.zeros(paged.block_bytes * blocks, dtype=torch.uint8, device=DEVICE)


def copied(layout: str, wanted: Sizes, source: list[int], target: list[int], skip: int) -> None:
    """Copy blocks of one cache into another, and compare all of the other's memory."""
    one, other = cache(layout, wanted, seed=1), cache(layout, wanted, seed=2)
    expected = other.clone()
    for name in one.tensors:
        for here, there in list(zip(source, target, strict=True))[skip:]:
            expected.block(name, there).copy_(one.block(name, here))
    here, there = (PagedCache.of(each.tensors, each.pages) for each in (one, other))
    before, dense = one.storage, memory(here, len(source))
    here.gather(torch.tensor(source, device=DEVICE), dense)
    assert one.storage == before
    there.scatter(dense, torch.tensor(target, device=DEVICE)[skip:], skip)
    assert other.storage == expected.storage


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_byte_survives_and_no_other_is_touched(layout: str, data: st.DataObject) -> None:
    wanted = data.draw(sizes())
    source = some_blocks(data, wanted.blocks)
    target = data.draw(st.permutations(range(wanted.blocks)))[: len(source)]
    copied(layout, wanted, source, target, skip=data.draw(st.integers(0, len(source) - 1)))


@pytest.mark.parametrize("layout", ["[2, blocks, tokens, heads, size]", "padded blocks"])
def test_large_runs_survive(layout: str) -> None:
    wanted = Sizes(2, 5, 128, 8, 64, torch.float32)
    assert wanted.page(wanted.heads * wanted.size).bytes > _LARGE_RUN
    copied(layout, wanted, [4, 0, 2], [1, 3, 0], skip=1)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), layout=st.sampled_from([*LAYOUTS]))
def test_layers_can_be_copied_in_parts(data: st.DataObject, layout: str) -> None:
    whole = cache(layout, data.draw(sizes()))
    paged, blocks = PagedCache.of(whole.tensors, whole.pages), some_blocks(data, whole.pages.blocks)
    numbers, layers = torch.tensor(blocks, device=DEVICE), len(paged.layers)
    together, apart = memory(paged, len(blocks)), memory(paged, len(blocks))
    paged.gather(numbers, together)
    cut = data.draw(st.integers(0, layers))
    for part in filter(len, (range(cut), range(cut, layers))):
        begin, end = paged.span(len(blocks), part)
        paged.gather(numbers, apart[begin:end], part)
    assert torch.equal(together, apart)


def test_ranks_that_split_the_heads_hold_all_bytes_together() -> None:
    """Each stores its own; two ranks of four heads are no rank of eight."""
    layout = "[blocks, heads, tokens, 2 * size] as LBHNC"
    whole = cache(layout, Sizes(2, 7, 16, 8, 8, torch.bfloat16))
    dense = []
    for rank in range(2):
        wanted = Sizes(2, 7, 16, 4, 8, torch.bfloat16)
        part = cache(layout, wanted)
        for name, tensor in part.tensors.items():
            tensor.copy_(whole.tensors[name][:, 4 * rank : 4 * rank + 4])
        paged = PagedCache.of(part.tensors, part.pages)
        dense.append(memory(paged, 1))
        paged.gather(torch.tensor([3], device=DEVICE), dense[-1])
    paged = PagedCache.of(whole.tensors, whole.pages)
    together = memory(paged, 1)
    paged.gather(torch.tensor([3], device=DEVICE), together)
    halves = torch.cat([each.view(2, -1) for each in dense], 1).flatten()
    assert torch.equal(together, halves)


def test_a_layer_that_uses_anothers_kv_is_copied_once() -> None:
    whole = cache("[blocks, heads, tokens, 2 * size] as LBHNC", Sizes(2, 7, 4, 2, 8, torch.float32))
    shared = {**whole.tensors, "uses layer 1": whole.tensors["layer 1"]}
    paged = PagedCache.of(shared, whole.pages)
    assert [layer.name for layer in paged.layers] == ["layer 0", "layer 1"]
    assert paged.block_bytes == whole.pages.bytes


def test_layers_are_in_the_order_of_the_configuration() -> None:
    whole = cache("MLA", Sizes(3, 7, 4, 1, 8, torch.float32))
    paged = PagedCache.of(dict(reversed(whole.tensors.items())), whole.pages)
    assert [layer.name for layer in paged.layers] == [*whole.pages.layers]


def test_what_vllm_registers_must_be_what_it_announced() -> None:
    whole = cache("MLA", Sizes(2, 7, 4, 1, 8, torch.float32))
    first = {"layer 0": whole.tensors["layer 0"]}
    with pytest.raises(UnknownLayoutError, match="no KV cache of layer 1"):
        PagedCache.of(first, whole.pages)
    more = {**whole.tensors, "layer 2": whole.tensors["layer 1"].clone()}
    with pytest.raises(UnknownLayoutError, match=r"of layer 2, .*has no such layer"):
        PagedCache.of(more, whole.pages)


@pytest.mark.parametrize("size", [0, 1, -1])
def test_memory_of_another_size_is_refused(size: int) -> None:
    whole = cache("MLA", Sizes(2, 7, 4, 1, 8, torch.float32))
    paged = PagedCache.of(whole.tensors, whole.pages)
    wrong = (
        memory(paged, 3)[: 3 * paged.block_bytes + size] if size < 0 else memory(paged, 2 + size)
    )
    numbers = torch.tensor([1, 2, 3, 4], device=DEVICE)
    for copy in (lambda: paged.gather(numbers, wrong), lambda: paged.scatter(wrong, numbers)):
        with pytest.raises(ValueError, match="4 blocks are 9216 bytes"):
            copy()


def test_the_widest_integers_are_copied() -> None:
    wide = Sizes(2, 7, 4, 2, 8, torch.float32)
    for layout, sizes_, dtype in (
        ("MLA", wide, torch.int64),
        ("fp8_ds_mla", wide, torch.int64),
        ("MLA", Sizes(2, 7, 2, 1, 3, torch.uint8), torch.int16),
        ("[2, blocks, tokens, heads, size]", Sizes(1, 7, 2, 2, 1, torch.uint8), torch.int32),
    ):
        whole = cache(layout, sizes_)
        assert PagedCache.of(whole.tensors, whole.pages)._dtype == dtype


def test_a_memory_object_that_is_no_uint8_at_an_even_address_is_copied() -> None:
    """LMCache aligns its memory; an address that is not aligned would be refused by torch."""
    whole = cache("MLA", Sizes(1, 7, 4, 1, 8, torch.float32))
    paged = PagedCache.of(whole.tensors, whole.pages)
    odd = random_bytes(paged.block_bytes + 1, torch.Generator()).to(DEVICE)[1:]
    with pytest.raises(RuntimeError, match="storage_offset"):
        paged.gather(torch.tensor([1], device=DEVICE), odd)
