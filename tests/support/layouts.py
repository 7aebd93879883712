"""KV caches of random bytes in every layout that vLLM's attention backends have."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from kserve_lmcache.connector.copy.pages import Page, Pages

# The tests of the copy run on this device: DEVICE=cuda where there is a GPU.
DEVICE = os.environ.get("DEVICE", "cpu")
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.uint8, torch.float8_e4m3fn)


@dataclass(frozen=True)
class Sizes:
    """Of a KV cache; ``heads`` are those of one tensor-parallel rank."""

    layers: int
    blocks: int
    tokens: int
    heads: int
    size: int
    dtype: torch.dtype

    def page(self, elements: int) -> Page:
        """A block of so many elements a token."""
        return Page(self.tokens, self.tokens * elements * self.dtype.itemsize, self.heads)


# Gives the tensor of each layer, and the size of a block in one.
Make = Callable[[Sizes, torch.Generator], tuple[list[torch.Tensor], Page]]


def random_bytes(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)


def _tensor(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Of random bytes, on the device of the tests; such bytes are any number, or none."""
    count = torch.Size(shape).numel() * dtype.itemsize
    return random_bytes(count, generator).to(DEVICE).view(dtype).view(shape)


def _each(shape: Callable[[Sizes], tuple[int, ...]], order: tuple[int, ...] | None = None) -> Make:
    """A tensor a layer; ``order`` names its axes as they lie in memory, outer ones first."""

    def make(sizes: Sizes, generator: torch.Generator) -> tuple[list[torch.Tensor], Page]:
        wanted = shape(sizes)
        axes = order or tuple(range(len(wanted)))
        tensors = [
            _tensor(tuple(wanted[axis] for axis in axes), sizes.dtype, generator).permute(
                [axes.index(axis) for axis in range(len(wanted))]
            )
            for _ in range(sizes.layers)
        ]
        return tensors, sizes.page(2 * sizes.heads * sizes.size)

    return make


def _packed(order: str) -> Make:
    """vLLM's ``[blocks, heads, tokens, content]`` of all layers in one allocation.

    The letters are its axes as they lie in memory: L B H N C.
    """

    def make(sizes: Sizes, generator: torch.Generator) -> tuple[list[torch.Tensor], Page]:
        length = {
            "L": sizes.layers,
            "B": sizes.blocks,
            "H": sizes.heads,
            "N": sizes.tokens,
            "C": 2 * sizes.size,
        }
        whole = _tensor(tuple(length[axis] for axis in order), sizes.dtype, generator)
        whole = whole.permute([order.index(axis) for axis in "LBHNC"])
        return list(whole), sizes.page(2 * sizes.heads * sizes.size)

    return make


def _padded(sizes: Sizes, generator: torch.Generator) -> tuple[list[torch.Tensor], Page]:
    """A gap behind each block."""
    page = sizes.heads * sizes.tokens * 2 * sizes.size
    layers = []
    for _ in range(sizes.layers):
        flat = _tensor((sizes.blocks, page + 32), sizes.dtype, generator)
        layers.append(flat[:, :page].view(sizes.blocks, sizes.heads, sizes.tokens, 2 * sizes.size))
    return layers, sizes.page(2 * sizes.heads * sizes.size)


def _latent(sizes: Sizes, generator: torch.Generator) -> tuple[list[torch.Tensor], Page]:
    shape = (sizes.blocks, sizes.tokens, 9 * sizes.size)
    layers = [_tensor(shape, sizes.dtype, generator) for _ in range(sizes.layers)]
    return layers, sizes.page(9 * sizes.size)


def _fp8_ds_mla(sizes: Sizes, generator: torch.Generator) -> tuple[list[torch.Tensor], Page]:
    """656 bytes a token: 512 of FP8, 16 of scales, 128 of RoPE in bfloat16."""
    shape = (sizes.blocks, sizes.tokens, 656)
    layers = [_tensor(shape, torch.uint8, generator) for _ in range(sizes.layers)]
    return layers, Page(sizes.tokens, 656 * sizes.tokens, 1)


def _kernel_blocks(sizes: Sizes, generator: torch.Generator) -> tuple[list[torch.Tensor], Page]:
    """The kernel has two blocks for each of vLLM's."""
    shape = (2, 2 * sizes.blocks, sizes.tokens // 2, sizes.heads, sizes.size)
    layers = [_tensor(shape, sizes.dtype, generator) for _ in range(sizes.layers)]
    return layers, sizes.page(2 * sizes.heads * sizes.size)


LAYOUTS: dict[str, Make] = {
    "[2, blocks, tokens, heads, size]": _each(lambda s: (2, s.blocks, s.tokens, s.heads, s.size)),
    "[2, blocks, tokens, heads, size] in the order of HND": _each(
        lambda s: (2, s.blocks, s.tokens, s.heads, s.size), (0, 1, 3, 2, 4)
    ),
    "[blocks, 2, tokens, heads, size]": _each(lambda s: (s.blocks, 2, s.tokens, s.heads, s.size)),
    "[blocks, 2, tokens, heads, size] in the order of HND": _each(
        lambda s: (s.blocks, 2, s.tokens, s.heads, s.size), (0, 1, 3, 2, 4)
    ),
    **{
        f"[blocks, heads, tokens, 2 * size] as {order}": _packed(order)
        for order in (
            "LBHNC",
            "LBNHC",
            "LHBNC",
            "BLHNC",
            "BLNHC",
            "BHLNC",
        )
    },
    "padded blocks": _padded,
    "MLA": _latent,
    "fp8_ds_mla": _fp8_ds_mla,
    "kernel blocks": _kernel_blocks,
}


@st.composite
def sizes(draw: st.DrawFn) -> Sizes:
    """Small caches; the number of blocks is no other size, nor a multiple of one."""
    return Sizes(
        layers=draw(st.integers(1, 4)),
        blocks=draw(st.sampled_from([5, 7, 11, 13])),
        tokens=draw(st.sampled_from([2, 4, 16, 32])),
        # The 8 heads of a model on one rank, on two, on four and on eight.
        heads=draw(st.sampled_from([1, 2, 4, 8])),
        size=draw(st.sampled_from([1, 3, 8, 16])),
        dtype=draw(st.sampled_from(DTYPES)),
    )


@dataclass(frozen=True)
class Cache:
    """The KV cache of a worker.

    Attributes:
        tensors: of the layers, by name.
        axis: of the tensors that counts the blocks.
        parts: the entries of that axis for each block.
        pages: what vLLM's configuration would say.
    """

    tensors: dict[str, torch.Tensor]
    axis: int
    parts: int
    pages: Pages

    @property
    def storage(self) -> list[bytes]:
        """All memory of the KV cache, gaps and all."""
        memory = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage()
            for tensor in self.tensors.values()
        }
        return [
            torch.empty(0, dtype=torch.uint8).set_(each.cpu()).numpy().tobytes()
            for each in memory.values()
        ]

    def clone(self) -> Cache:
        """The same with memory of its own."""
        memory = {}
        for tensor in self.tensors.values():
            storage = tensor.untyped_storage()
            memory.setdefault(storage.data_ptr(), storage.clone())
        tensors = {
            name: torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(
                memory[tensor.untyped_storage().data_ptr()],
                tensor.storage_offset(),
                tensor.shape,
                tensor.stride(),
            )
            for name, tensor in self.tensors.items()
        }
        return Cache(tensors, self.axis, self.parts, self.pages)

    def block(self, name: str, number: int) -> torch.Tensor:
        """One block of a layer, a view in vLLM's shape."""
        return self.tensors[name].narrow(self.axis, number * self.parts, self.parts)


def cache(layout: str, sizes: Sizes, seed: int = 0) -> Cache:
    """A KV cache of random bytes."""
    tensors, page = LAYOUTS[layout](sizes, torch.Generator().manual_seed(seed))
    parts = 2 if layout == "kernel blocks" else 1
    names = [f"layer {number}" for number in range(len(tensors))]
    axis = 1 if layout.startswith("[2,") or layout == "kernel blocks" else 0
    pages = Pages(sizes.blocks, dict.fromkeys(names, page))
    return Cache(dict(zip(names, tensors, strict=True)), axis, parts, pages)
