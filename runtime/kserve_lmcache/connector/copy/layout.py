"""Finds the bytes of each block in the tensor of a layer's KV cache.

The tensor's shape, its strides and the size of a block decide, whatever the axes mean. An axis
counts the blocks. Of the others, those that lie densely behind one another in a block make a *run*
of bytes, in any order: ``NHD`` and ``HND`` are alike. The rest are *planes*: the leading 2 of
``[2, blocks, …]``, heads that lie outside of the blocks, what gaps separate. A block is one run in
each plane::

    tensor, shape and strides                     planes  run
    [blocks, heads, tokens, 2 * size], dense           1  the whole block
    [2, blocks, tokens, heads, size], dense            2  half of the block
    [blocks, tokens, 656] of uint8                     1  the whole block
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from kserve_lmcache.connector.copy.pages import Page


class UnknownLayoutError(NotImplementedError):
    """The blocks of a layer's KV cache cannot be told from its tensor."""


@dataclass(frozen=True)
class LayerBlocks:
    """The blocks of one layer.

    Attributes:
        name: of the layer.
        tensor: as vLLM has it.
        axis: of ``tensor``, which counts the blocks.
        parts: how many entries of this axis make one block. More than one where the kernel has
            smaller blocks than vLLM's scheduler.
        planes: number of runs of a block.
        run: bytes of a run.
        view: the tensor's memory: bytes of the shape ``[*axes of the planes, blocks, run]``.
        form: what the stored bytes depend on, in words.
    """

    name: str
    tensor: torch.Tensor
    axis: int
    parts: int
    planes: int
    run: int
    view: torch.Tensor
    form: str


@dataclass(frozen=True)
class _Axis:
    size: int
    stride: int  # in bytes


def blocks_of(name: str, tensor: torch.Tensor, blocks: int, page: Page) -> LayerBlocks:
    """The blocks of a layer.

    Args:
        name: of the layer.
        tensor: its KV cache.
        blocks: number of blocks.
        page: what vLLM's configuration says of one of them.

    Raises:
        UnknownLayoutError: the tensor is no list of such blocks, or may be one in several ways.
    """

    def refusal(reason: str) -> UnknownLayoutError:
        return UnknownLayoutError(f"{described(name, tensor)}: {reason}")

    item = tensor.element_size()
    if tensor.numel() * item != blocks * page.bytes:
        raise refusal(
            f"{tensor.numel() * item} bytes are not the {blocks} blocks of {page.bytes} bytes "
            "that vLLM's configuration says"
        )
    axis, parts = _block_axis(tensor, blocks, page, refusal)
    strides = [stride * item for stride in tensor.stride()]
    block = _Axis(blocks, parts * strides[axis])
    others = [
        _Axis(size, stride)
        for place, (size, stride) in enumerate(zip(tensor.shape, strides, strict=True))
        if size > 1 and place != axis
    ]
    if parts > 1:
        others.append(_Axis(parts, strides[axis]))
    others.sort(key=lambda each: each.stride)
    run = item
    while others and others[0].stride == run:
        run *= others.pop(0).size
    end = run
    for each in sorted((block, *others), key=lambda each: each.stride):
        if each.stride < end:
            raise refusal("its elements share memory")
        end += each.stride * (each.size - 1)
    planes = _merged(others[::-1])
    order = sorted(range(tensor.ndim), key=lambda place: -strides[place])
    shape = [
        f"blocks*{parts}" if place == axis else str(size) for place, size in enumerate(tensor.shape)
    ]
    count = math.prod(plane.size for plane in planes)
    return LayerBlocks(
        name,
        tensor,
        axis,
        parts,
        count,
        run,
        _bytes_view(tensor, [*planes, block, _Axis(run, 1)]),
        f"{tensor.dtype} [{', '.join(shape)}] in the order {order}, {count} planes of {run} bytes",
    )


def described(name: str, tensor: torch.Tensor) -> str:
    """A layer's KV cache, in words."""
    return (
        f"the KV cache of {name}, {tensor.dtype} of shape {tuple(tensor.shape)} and strides "
        f"{tensor.stride()}"
    )


def _block_axis(
    tensor: torch.Tensor,
    blocks: int,
    page: Page,
    refusal: Callable[[str], UnknownLayoutError],
) -> tuple[int, int]:
    """The axis that counts the blocks, and how many of its entries make one block.

    Several axes may have a fitting size. A token lies in a block, so the axis of the blocks has a
    larger stride than that of the tokens. Nothing lies outside of the blocks but the axis of K and
    V and that of the heads, so another outermost axis counts the blocks.
    """
    shape, strides = tensor.shape, tensor.stride()
    fitting = [
        (axis, size // blocks)
        for axis, size in enumerate(shape)
        if size and size % blocks == 0 and page.tokens % (size // blocks) == 0
    ]
    if not fitting:
        raise refusal(f"no axis counts {blocks} blocks")
    if len(fitting) > 1:

        def holds_tokens(axis: int, parts: int) -> bool:
            return any(
                size == page.tokens // parts and (size == 1 or strides[other] < strides[axis])
                for other, size in enumerate(shape)
                if other != axis
            )

        fitting = [each for each in fitting if holds_tokens(*each)] or fitting
    fitting.sort(key=lambda each: -strides[each[0]])
    outermost = fitting[0]
    if len(fitting) > 1 and (blocks == 1 or shape[outermost[0]] in (2, page.heads)):
        axes = sorted(axis for axis, _ in fitting)
        raise refusal(f"each of the axes {axes} may count the {blocks} blocks")
    return outermost


def _merged(axes: Sequence[_Axis]) -> list[_Axis]:
    """As few axes as give the same addresses in the same order; outer ones first."""
    merged: list[_Axis] = []
    for axis in axes:
        if merged and merged[-1].stride == axis.size * axis.stride:
            axis = _Axis(merged.pop().size * axis.size, axis.stride)
        merged.append(axis)
    return merged


def _bytes_view(tensor: torch.Tensor, axes: Sequence[_Axis]) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(
        tensor.untyped_storage(),
        tensor.storage_offset() * tensor.element_size(),
        [axis.size for axis in axes],
        [axis.stride for axis in axes],
    )
