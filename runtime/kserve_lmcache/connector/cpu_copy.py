"""Copies between vLLM's paged KV cache on a CPU and LMCache's memory objects.

vLLM's paged cache (0.24 to 0.28) is one tensor a layer: ``[blocks, heads, block_size,
2 * head_size]``, K then V in the last axis.

A memory object is ``[2, layers, tokens, heads * head_size]`` (LMCache's ``KV_2LTD``). A slot is
the place of one token: ``block * block_size + offset``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lmcache.v1.gpu_connector.gpu_connectors import GPUConnectorInterface

if TYPE_CHECKING:
    from lmcache.v1.config import LMCacheEngineConfig
    from lmcache.v1.memory_management import MemoryObj
    from lmcache.v1.metadata import LMCacheMetadata


def keys_and_values(layer: torch.Tensor, head_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of one layer's K and V, each ``[blocks, heads, block_size, head_size]``.

    Raises:
        NotImplementedError: the layer has another layout.
    """
    if layer.ndim == 4 and layer.shape[-1] == 2 * head_size:
        return layer[..., :head_size], layer[..., head_size:]
    raise NotImplementedError(
        f"a KV cache layer of shape {tuple(layer.shape)} with heads of {head_size} "
        "cannot be copied on a CPU"
    )


def gather(
    layers: Sequence[torch.Tensor], slots: torch.Tensor, head_size: int, target: torch.Tensor
) -> None:
    """Copy the tokens at ``slots`` into ``target``, ``[2, layers, tokens, heads * head_size]``."""
    for index, paged in _pages(layers, head_size):
        blocks, offsets = _positions(slots, paged)
        # Advanced indices around a slice put the token axis first: [tokens, heads, head_size].
        target[index].copy_(paged[blocks, :, offsets].flatten(1))


def scatter(
    source: torch.Tensor, layers: Sequence[torch.Tensor], slots: torch.Tensor, head_size: int
) -> None:
    """Copy ``source``, ``[2, layers, tokens, heads * head_size]``, to the tokens at ``slots``."""
    for index, paged in _pages(layers, head_size):
        blocks, offsets = _positions(slots, paged)
        paged[blocks, :, offsets] = source[index].unflatten(1, (-1, head_size))


def _pages(
    layers: Sequence[torch.Tensor], head_size: int
) -> Iterator[tuple[tuple[int, int], torch.Tensor]]:
    for number, layer in enumerate(layers):
        for kind, paged in enumerate(keys_and_values(layer, head_size)):
            yield (kind, number), paged


def _positions(slots: torch.Tensor, paged: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    block_size = paged.shape[2]
    return torch.div(slots, block_size, rounding_mode="floor"), slots % block_size


class CPUPagedMemoryConnector(GPUConnectorInterface):  # type: ignore[misc]
    """LMCache's "GPU connector" for a paged KV cache that lies in the CPU's memory.

    Args:
        layers: number of layers.
        heads: number of KV heads of this worker.
        head_size: elements of one head.
    """

    def __init__(self, layers: int, heads: int, head_size: int) -> None:
        self.layers = layers
        self.heads = heads
        self.head_size = head_size
        self.kvcaches: list[torch.Tensor] | None = None

    @classmethod
    def from_metadata(
        cls, config: LMCacheEngineConfig, metadata: LMCacheMetadata
    ) -> CPUPagedMemoryConnector:
        """For the model that ``metadata`` describes.

        Raises:
            NotImplementedError: with every reason why it cannot be offloaded on a CPU.
        """
        reasons = []
        if metadata.use_mla:
            reasons.append("the model uses multi-head latent attention (MLA)")
        if config.use_layerwise:
            reasons.append("use_layerwise is set")
        if config.enable_blending:
            reasons.append("enable_blending is set")
        if reasons:
            raise NotImplementedError(f"not supported on a CPU: {'; '.join(reasons)}")
        layers, _, _, heads, head_size = metadata.kv_shape
        return cls(layers, heads, head_size)

    def from_gpu(self, memory_obj: MemoryObj, start: int, end: int, **kwargs: Any) -> None:
        """Fill ``memory_obj`` with tokens ``start`` to ``end`` of ``kwargs["slot_mapping"]``."""
        gather(
            kwargs["kvcaches"],
            kwargs["slot_mapping"][start:end],
            self.head_size,
            memory_obj.tensor,
        )

    def to_gpu(self, memory_obj: MemoryObj, start: int, end: int, **kwargs: Any) -> None:
        """Copy ``memory_obj`` to tokens ``start`` to ``end`` of ``kwargs["slot_mapping"]``.

        The first ``vllm_cached_tokens`` are vLLM's own, perhaps shared with running requests:
        they are not written.
        """
        skip = min(end - start, max(0, kwargs.get("vllm_cached_tokens", 0) - start))
        scatter(
            memory_obj.tensor[:, :, skip:],
            kwargs["kvcaches"],
            kwargs["slot_mapping"][start + skip : end],
            self.head_size,
        )

    def batched_from_gpu(
        self,
        memory_objs: Sequence[MemoryObj],
        starts: Sequence[int],
        ends: Sequence[int],
        **kwargs: Any,
    ) -> None:
        """:meth:`from_gpu` of every memory object."""
        for memory_obj, start, end in zip(memory_objs, starts, ends, strict=True):
            self.from_gpu(memory_obj, start, end, **kwargs)

    def batched_to_gpu(
        self,
        memory_objs: Sequence[MemoryObj],
        starts: Sequence[int],
        ends: Sequence[int],
        **kwargs: Any,
    ) -> None:
        """:meth:`to_gpu` of every memory object."""
        for memory_obj, start, end in zip(memory_objs, starts, ends, strict=True):
            self.to_gpu(memory_obj, start, end, **kwargs)

    def get_shape(self, num_tokens: int) -> torch.Size:
        """Shape of a memory object of ``num_tokens`` tokens."""
        return torch.Size([2, self.layers, num_tokens, self.heads * self.head_size])
