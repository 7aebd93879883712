"""LMCache's "GPU connector" that copies whole blocks as opaque bytes, on every device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lmcache.v1.gpu_connector.gpu_connectors import GPUConnectorInterface

from kserve_lmcache.connector.copy.paged_cache import PagedCache
from kserve_lmcache.connector.copy.transfer import Chunk, Transfer, transfer_of

if TYPE_CHECKING:
    from lmcache.v1.memory_management import MemoryObj

    from kserve_lmcache.connector.copy.pages import Pages


class BlockConnector(GPUConnectorInterface):  # type: ignore[misc]
    """Copies between the paged KV cache and LMCache's memory objects.

    A memory object of ``n`` tokens is ``[1, 1, n, bytes of a token]``. Its bytes are the dense
    memory of its blocks (:class:`.PagedCache`). No memory object holds a part of a block.

    Args:
        pages: what vLLM's configuration says of a block.
        chunk_size: tokens of a whole chunk.

    Attributes:
        cache: the KV cache; missing until :meth:`register`.

    Raises:
        NotImplementedError: a chunk is no whole number of blocks, or a block is no whole number of
            bytes a token.
    """

    cache: PagedCache
    _transfer: Transfer

    def __init__(self, pages: Pages, chunk_size: int) -> None:
        if chunk_size % pages.tokens:
            raise NotImplementedError(
                f"a chunk of {chunk_size} tokens is no whole number of blocks of {pages.tokens}"
            )
        self.bytes_per_token = pages.bytes_per_token
        self._pages = pages
        self._chunk_blocks = chunk_size // pages.tokens

    def register(self, kv_caches: Mapping[str, torch.Tensor]) -> None:
        """Copy from and to this KV cache from now on.

        Args:
            kv_caches: a tensor for each layer, by the layer's name.

        Raises:
            UnknownLayoutError: the KV cache is no list of blocks.
        """
        self.cache = PagedCache.of(kv_caches, self._pages)
        self._transfer = transfer_of(self.cache, self._chunk_blocks)

    def from_gpu(self, memory_obj: MemoryObj, start: int, end: int, **kwargs: Any) -> None:
        """Fill ``memory_obj`` with tokens ``start`` to ``end`` of ``kwargs["slot_mapping"]``."""
        self.batched_from_gpu([memory_obj], [start], [end], **kwargs)

    def to_gpu(self, memory_obj: MemoryObj, start: int, end: int, **kwargs: Any) -> None:
        """Copy ``memory_obj`` to tokens ``start`` to ``end`` of ``kwargs["slot_mapping"]``."""
        self.batched_to_gpu([memory_obj], [start], [end], **kwargs)

    def batched_from_gpu(
        self,
        memory_objs: Sequence[MemoryObj],
        starts: Sequence[int],
        ends: Sequence[int],
        **kwargs: Any,
    ) -> None:
        """:meth:`from_gpu` of every memory object."""
        slots = kwargs["slot_mapping"].cpu()
        self._transfer.store(
            [
                Chunk(memory_obj.tensor, self._blocks(slots[start:end]))
                for memory_obj, start, end in zip(memory_objs, starts, ends, strict=True)
            ]
        )

    def batched_to_gpu(
        self,
        memory_objs: Sequence[MemoryObj],
        starts: Sequence[int],
        ends: Sequence[int],
        **kwargs: Any,
    ) -> None:
        """:meth:`to_gpu` of every memory object.

        The first ``vllm_cached_tokens`` belong to vLLM, which may share them with running requests.
        They are not written.
        """
        slots, cached = kwargs["slot_mapping"].cpu(), kwargs.get("vllm_cached_tokens", 0)
        chunks = []
        for memory_obj, start, end in zip(memory_objs, starts, ends, strict=True):
            skip = min(end - start, max(0, cached - start))
            blocks = self._blocks(slots[start + skip : end])
            chunks.append(Chunk(memory_obj.tensor, blocks, skip // self._pages.tokens))
        self._transfer.load([chunk for chunk in chunks if chunk.blocks])

    def get_shape(self, num_tokens: int) -> torch.Size:
        """Shape of a memory object of ``num_tokens`` tokens."""
        return torch.Size([1, 1, num_tokens, self.bytes_per_token])

    def _blocks(self, slots: torch.Tensor) -> list[int]:
        """The blocks of slots; a slot is ``block * tokens of a block + offset``.

        Raises:
            ValueError: the slots are not whole blocks.
        """
        tokens = self._pages.tokens
        if len(slots) % tokens == 0:
            rows = slots.view(-1, tokens)
            blocks = rows[:, 0] // tokens
            offsets = torch.arange(tokens, dtype=slots.dtype)
            if torch.equal(rows, blocks[:, None] * tokens + offsets):
                found: list[int] = blocks.tolist()
                return found
        raise ValueError(
            f"{len(slots)} slots are not whole blocks of {tokens}; a part of a block is not copied"
        )
