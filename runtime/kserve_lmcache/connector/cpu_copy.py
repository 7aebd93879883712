"""Copies between vLLM's paged KV cache on a CPU and LMCache's memory objects.

vLLM's paged cache (0.24 to 0.32) is one tensor a layer: ``[blocks, heads, block_size,
2 * head_size]``. A memory object is ``[2, layers, tokens, heads * head_size]`` (LMCache's
``KV_2LTD``). A slot is the place of one token: ``block * block_size + offset``.

Only the first two axes of the paged cache have the meaning of their names. Within one head's part
of a block the attention kernel chooses the layout of K and V by the processor (K by columns, on AMX
in pairs of tokens, …), so a row is not a token. Only whole blocks are copied, byte for byte. The
first half of a block goes to the first half of the memory object, the second half to the second,
each in one piece. The content of a memory object depends on the block size and the kernel
(``identity/namespace.py`` puts both into the keys).
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


def gather(layers: Sequence[torch.Tensor], slots: torch.Tensor, target: torch.Tensor) -> None:
    """Copy the blocks at ``slots`` into ``target``, ``[2, layers, tokens, heads * head_size]``.

    Raises:
        ValueError: the slots are not whole blocks.
    """
    for block, part in _pairs(layers, slots, target):
        part.copy_(block)


def scatter(source: torch.Tensor, layers: Sequence[torch.Tensor], slots: torch.Tensor) -> None:
    """Copy ``source``, ``[2, layers, tokens, heads * head_size]``, to the blocks at ``slots``.

    Raises:
        ValueError: the slots are not whole blocks.
    """
    for block, part in _pairs(layers, slots, source):
        block.copy_(part)


def _pairs(
    layers: Sequence[torch.Tensor], slots: torch.Tensor, memory: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of a block of the paged cache and its part of the memory object: ``[2, elements]``."""
    block_size = layers[0].shape[2]
    blocks = _whole_blocks(slots, block_size)
    for number, layer in enumerate(layers):
        for place, block in enumerate(blocks):
            part = memory[:, number, place * block_size : (place + 1) * block_size]
            yield layer[block].view(2, -1), part.flatten(1)


def _whole_blocks(slots: torch.Tensor, block_size: int) -> list[int]:
    if len(slots) % block_size == 0:
        rows = slots.view(-1, block_size)
        blocks = rows[:, 0] // block_size
        offsets = torch.arange(block_size, dtype=slots.dtype)
        if torch.equal(rows, blocks[:, None] * block_size + offsets):
            found: list[int] = blocks.tolist()
            return found
    raise ValueError(
        f"{len(slots)} slots are not whole blocks of {block_size}; a part of a block cannot be "
        "copied on a CPU"
    )


class CPUPagedMemoryConnector(GPUConnectorInterface):  # type: ignore[misc]
    """LMCache's "GPU connector" for a paged KV cache in the memory of a CPU.

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
        """Create the copy path for the model that ``metadata`` describes."""
        layers, _, _, heads, head_size = metadata.kv_shape
        return cls(layers, heads, head_size)

    def check(self, layers: Sequence[torch.Tensor]) -> None:
        """Compare the paged cache with the model's configuration.

        Raises:
            NotImplementedError: a layer has another number or size of heads, or another layout.
        """
        for layer in layers:
            if layer.ndim != 4 or not layer[:1].is_contiguous():
                raise NotImplementedError(
                    f"a KV cache layer of shape {tuple(layer.shape)} and strides {layer.stride()} "
                    "cannot be copied on a CPU"
                )
        announced = (self.layers, {(self.heads, 2 * self.head_size)})
        found = (len(layers), {(layer.shape[1], layer.shape[-1]) for layer in layers})
        if found != announced:
            raise NotImplementedError(
                f"the KV cache has {found[0]} layers of (heads, 2 * head size) {sorted(found[1])}, "
                f"and the model's configuration says {announced[0]} of {sorted(announced[1])}"
            )

    def from_gpu(self, memory_obj: MemoryObj, start: int, end: int, **kwargs: Any) -> None:
        """Fill ``memory_obj`` with tokens ``start`` to ``end`` of ``kwargs["slot_mapping"]``."""
        gather(kwargs["kvcaches"], kwargs["slot_mapping"][start:end], memory_obj.tensor)

    def to_gpu(self, memory_obj: MemoryObj, start: int, end: int, **kwargs: Any) -> None:
        """Copy ``memory_obj`` to tokens ``start`` to ``end`` of ``kwargs["slot_mapping"]``.

        The first ``vllm_cached_tokens`` belong to vLLM, which may share them with running requests.
        They are not written.
        """
        skip = min(end - start, max(0, kwargs.get("vllm_cached_tokens", 0) - start))
        scatter(
            memory_obj.tensor[:, :, skip:],
            kwargs["kvcaches"],
            kwargs["slot_mapping"][start + skip : end],
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
