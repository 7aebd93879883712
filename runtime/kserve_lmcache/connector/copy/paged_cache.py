"""Copies blocks of all layers between the paged KV cache and dense memory of the same device."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import torch

from kserve_lmcache.connector.copy.layout import (
    LayerBlocks,
    UnknownLayoutError,
    blocks_of,
    described,
)
from kserve_lmcache.connector.copy.pages import Pages

_WIDTHS = (torch.int64, torch.int32, torch.int16, torch.uint8)
# From this size on, a CPU copies runs faster one by one than by an index (measured on two cores).
_LARGE_RUN = 80 * 1024  # bytes


class PagedCache:
    """The KV cache of a worker: the same number of blocks in each layer.

    The dense memory of ``n`` blocks is the bytes of one layer after those of another; of a layer,
    one plane after another; of a plane, ``n`` runs.

    Args:
        layers: that have KV of their own, in the order of the dense memory.

    Attributes:
        layers: as given.
        layer_bytes: of one block in each layer.
        block_bytes: of one block in all layers.
        device: that has the KV cache.
    """

    def __init__(self, layers: Sequence[LayerBlocks]) -> None:
        self.layers = tuple(layers)
        self.layer_bytes = [layer.planes * layer.run for layer in layers]
        self.block_bytes = sum(self.layer_bytes)
        self.device = layers[0].tensor.device
        self._begins = [0, *itertools.accumulate(self.layer_bytes)]
        self._dtype = _widest(layers)
        self._views = [layer.view.view(self._dtype) for layer in layers]

    @classmethod
    def of(cls, kv_caches: Mapping[str, torch.Tensor], pages: Pages) -> PagedCache:
        """The KV cache that vLLM registers.

        Args:
            kv_caches: a tensor for each layer, by the layer's name. A layer that uses the KV of
                another has the other's tensor.
            pages: what vLLM's configuration says.

        Raises:
            UnknownLayoutError: a layer is missing, is in another memory or has an unknown layout.
        """
        if missing := [name for name in pages.layers if name not in kv_caches]:
            raise UnknownLayoutError(f"vLLM registers no KV cache of {', '.join(missing)}")
        known = {_identity(kv_caches[name]): name for name in reversed([*pages.layers])}
        for name, tensor in kv_caches.items():
            if _identity(tensor) not in known:
                reason = "vLLM's configuration has no such layer"
                raise UnknownLayoutError(f"{described(name, tensor)}: {reason}")
        return cls(
            [
                blocks_of(name, kv_caches[name], pages.blocks, page)
                for name, page in pages.layers.items()
            ]
        )

    @property
    def form(self) -> str:
        """A digest of what the stored bytes depend on."""
        text = "\n".join(layer.form for layer in self.layers)
        return hashlib.sha256(text.encode()).hexdigest()

    def gather(
        self, blocks: torch.Tensor, target: torch.Tensor, layers: range | None = None
    ) -> None:
        """Copy blocks into dense memory.

        Args:
            blocks: numbers of blocks, on the device of the KV cache.
            target: bytes of the memory of these blocks in these layers.
            layers: numbers of some layers that follow one another; by default all.
        """
        for number, part in self._parts(target, len(blocks), layers):
            view = self._views[number]
            torch.index_select(view, view.ndim - 2, blocks, out=part)

    def scatter(
        self,
        source: torch.Tensor,
        blocks: torch.Tensor,
        skip: int = 0,
        layers: range | None = None,
    ) -> None:
        """Copy dense memory to blocks.

        Args:
            source: bytes of the memory of ``skip`` blocks, which are left out, and of ``blocks``.
            blocks: numbers of blocks, on the device of the KV cache.
            skip: number of blocks at the beginning of ``source``.
            layers: numbers of some layers that follow one another; by default all.
        """
        for number, part in self._parts(source, skip + len(blocks), layers):
            view = self._views[number]
            part = part.narrow(part.ndim - 2, skip, len(blocks))
            if view.device.type == "cpu" and self.layers[number].run >= _LARGE_RUN:
                for place, block in enumerate(blocks.tolist()):
                    view[..., block, :].copy_(part[..., place, :])
            else:
                view.index_copy_(view.ndim - 2, blocks, part)

    def span(self, blocks: int, layers: range) -> tuple[int, int]:
        """Where the memory of ``layers`` begins and ends in the dense memory of ``blocks``."""
        return blocks * self._begins[layers.start], blocks * self._begins[layers.stop]

    def _parts(
        self, memory: torch.Tensor, blocks: int, layers: range | None
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """The number of each layer, and its part of dense memory in the shape of its view."""
        chosen = range(len(self.layers)) if layers is None else layers
        begin, end = self.span(blocks, chosen)
        if memory.numel() != end - begin:
            raise ValueError(
                f"{blocks} blocks are {end - begin} bytes, and the memory has {memory.numel()}"
            )
        wide = memory.view(-1).view(self._dtype)
        start = 0
        for number in chosen:
            size = blocks * self.layer_bytes[number] // self._dtype.itemsize
            view = self._views[number]
            shape = (*view.shape[:-2], blocks, view.shape[-1])
            yield number, wide[start : start + size].view(shape)
            start += size


def _identity(tensor: torch.Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _widest(layers: Sequence[LayerBlocks]) -> torch.dtype:
    """The widest integer that divides every address and every run."""
    common = math.gcd(
        *(layer.run for layer in layers),
        *(layer.view.data_ptr() for layer in layers),
        *(layer.view.storage_offset() for layer in layers),
        *(stride for layer in layers for stride in layer.view.stride()[:-1]),
    )
    return next(dtype for dtype in _WIDTHS if common % dtype.itemsize == 0)
