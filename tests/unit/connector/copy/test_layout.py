"""The blocks of a layer are found by shape, strides and size alone, or refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_lmcache.connector.copy.layout import LayerBlocks, UnknownLayoutError, blocks_of
from kserve_lmcache.connector.copy.pages import Page
from tests.support.layouts import LAYOUTS, Sizes, cache, sizes

PAGE = Page(tokens=16, bytes=16 * 2 * 8 * 4 * 2, heads=2)  # 8 elements, K and V, of 4 bytes


def find(tensor: torch.Tensor, blocks: int, page: Page = PAGE) -> LayerBlocks:
    return blocks_of("model.layers.0", tensor, blocks, page)


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_the_bytes_of_a_block_are_those_of_vllms_block(layout: str, data: st.DataObject) -> None:
    """In the order of their addresses, plane by plane."""
    whole = cache(layout, data.draw(sizes()))
    for name, tensor in whole.tensors.items():
        found = blocks_of(name, tensor, whole.pages.blocks, whole.pages.layers[name])
        assert (found.axis, found.parts) == (whole.axis, whole.parts)
        assert found.planes * found.run == whole.pages.layers[name].bytes
        runs = found.view.flatten(0, -3) if found.view.ndim > 2 else found.view[None]
        for number in range(whole.pages.blocks):
            block = whole.block(name, number)
            order = sorted(range(block.ndim), key=lambda axis, b=block: -b.stride(axis))
            # The axes of size 1 may be anywhere.
            expected = block.permute(order).contiguous().flatten().view(torch.uint8)
            assert torch.equal(runs[:, number].flatten().cpu(), expected.cpu())


@pytest.mark.parametrize(
    ("layout", "planes"),
    [
        ("[2, blocks, tokens, heads, size]", 2),
        ("[2, blocks, tokens, heads, size] in the order of HND", 2),
        ("[blocks, 2, tokens, heads, size]", 1),
        ("[blocks, heads, tokens, 2 * size] as LBHNC", 1),
        ("[blocks, heads, tokens, 2 * size] as LBNHC", 1),
        ("[blocks, heads, tokens, 2 * size] as LHBNC", 4),
        ("[blocks, heads, tokens, 2 * size] as BLHNC", 1),
        ("[blocks, heads, tokens, 2 * size] as BHLNC", 4),
        ("padded blocks", 1),
        ("MLA", 1),
        ("kernel blocks", 2),
    ],
)
def test_dense_axes_are_one_run(layout: str, planes: int) -> None:
    whole = cache(layout, Sizes(3, 7, 16, 4, 8, torch.bfloat16))
    for name, tensor in whole.tensors.items():
        found = blocks_of(name, tensor, 7, whole.pages.layers[name])
        assert found.planes == planes


def test_the_form_tells_layouts_apart() -> None:
    """Two caches of one form store the same bytes; gaps and the number of blocks do not matter."""
    forms: dict[str, set[str]] = {}
    for blocks in (7, 11):
        for layout in LAYOUTS:
            whole = cache(layout, Sizes(3, blocks, 16, 4, 8, torch.bfloat16))
            name, tensor = next(iter(whole.tensors.items()))
            found = blocks_of(name, tensor, blocks, whole.pages.layers[name])
            forms.setdefault(found.form, set()).add(layout)
    packed = "[blocks, heads, tokens, 2 * size] as "
    alike = [layouts for layouts in forms.values() if len(layouts) > 1]
    assert sorted(map(sorted, alike)) == [
        sorted({packed + "LBHNC", packed + "BLHNC", "padded blocks"}),
        sorted({packed + "LBNHC", packed + "BLNHC"}),
    ]


@pytest.mark.parametrize(
    ("shape", "blocks", "axis"),
    [
        # As many blocks as a block has tokens, as a head has elements, or half as many.
        ((16, 2, 16, 16), 16, 0),
        ((8, 2, 16, 16), 8, 0),
        ((2, 16, 16, 2, 8), 16, 1),
        ((2, 8, 16, 2, 8), 8, 1),
        ((16, 2, 16, 2, 8), 16, 0),
        # Only K and V and the heads may lie outside of the blocks.
        ((4, 2, 16, 16), 4, 0),
    ],
)
def test_an_axis_of_the_same_size_is_told_apart(
    shape: tuple[int, ...], blocks: int, axis: int
) -> None:
    assert find(torch.zeros(shape), blocks).axis == axis


@pytest.mark.parametrize(
    ("tensor", "blocks", "reason"),
    [
        (torch.zeros(2, 2, 16, 2, 8), 2, r"each of the axes \[0, 1, 2\] may count the 2 blocks"),
        (torch.zeros(1, 2, 16, 16), 1, r"each of the axes \[.*\] may count the 1 blocks"),
        (torch.zeros(7, 2, 16, 16), 8, "14336 bytes are not the 8 blocks of 2048 bytes"),
        (torch.zeros(8, 1, 16, 16), 8, "8192 bytes are not the 8 blocks of 2048 bytes"),
        (torch.zeros(7 * 512), 7, "no axis counts 7 blocks"),
        (torch.zeros(7, 1, 16, 16).expand(7, 2, 16, 16), 7, "its elements share memory"),
        (torch.zeros(8192).as_strided((7, 2, 16, 16), (500, 256, 16, 1)), 7, "share memory"),
    ],
)
def test_what_is_no_list_of_blocks_is_refused(
    tensor: torch.Tensor, blocks: int, reason: str
) -> None:
    with pytest.raises(UnknownLayoutError, match=reason) as refused:
        find(tensor, blocks)
    for part in ("model.layers.0", str(tuple(tensor.shape)), str(tensor.stride())):
        assert part in str(refused.value)
