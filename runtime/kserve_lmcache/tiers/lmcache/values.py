"""The values that LMCache's connectors carry for the tier.

A connector believes that a chunk is one token of many bytes. Each value is encoded
(:mod:`kserve_lmcache.tiers.guard.codec`) and padded to the size of a full chunk, since some
connectors (``s3://``, ``azure://``) keep values of one size only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy
import torch
from lmcache.utils import CacheEngineKey
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj

from kserve_lmcache.tiers.guard.codec import Buffer, Layout, header_size

if TYPE_CHECKING:
    from lmcache.v1.config import LMCacheEngineConfig
    from lmcache.v1.metadata import LMCacheMetadata

_PAGE = 4096  # bytes; O_DIRECT demands multiples of it, as sizes and as addresses


def value_size(layout: Layout, payload_bytes: int) -> int:
    """Returns the bytes of a full chunk's value."""
    return -(-(header_size(layout) + payload_bytes) // _PAGE) * _PAGE


def short_key(key: str) -> CacheEngineKey:
    """Returns a key that fits every connector: ``lm://`` takes 150 characters, a file name 255.

    The checksum of a value would tell two keys with the same digest apart.
    """
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    return CacheEngineKey("kserve-lmcache", 1, 0, int.from_bytes(digest, "big"), torch.uint8)


class Value(TensorMemoryObj):  # type: ignore[misc]
    """The bytes of one value, in memory of their own."""

    @property
    def byte_array(self) -> memoryview:
        """The bytes. The view keeps the memory alive, which LMCache's own view does not."""
        return memoryview(self.raw_data.numpy())[: self.get_size()]


class Values:
    """Allocates values. A connector takes this object for LMCache's local CPU backend.

    Args:
        config: the connectors' configuration.
        metadata: LMCache's own, which describes the engine.
        size: bytes of a full chunk's value, from :func:`value_size`.
    """

    memory_allocator = None  # no memory is registered with a device

    def __init__(self, config: LMCacheEngineConfig, metadata: LMCacheMetadata, size: int) -> None:
        self.config = config
        self.metadata = _Metadata(metadata, size)
        self.size = size

    def allocate(
        self,
        shapes: torch.Size | Sequence[torch.Size],
        dtypes: torch.dtype | Sequence[torch.dtype],
        fmt: MemoryFormat = MemoryFormat.KV_2LTD,
        eviction: bool = True,
        busy_loop: bool = True,
    ) -> Value:
        """Allocates memory for a value.

        Raises:
            ValueError: the value is larger than a full chunk's.
        """
        shapes = [shapes] if isinstance(shapes, torch.Size) else [*shapes]
        dtypes = [dtypes] if isinstance(dtypes, torch.dtype) else [*dtypes]
        size = sum(s.numel() * d.itemsize for s, d in zip(shapes, dtypes, strict=True))
        if size > self.size:
            raise ValueError(f"a value of {size} bytes is larger than a chunk")
        memory = torch.empty(size + _PAGE - 1, dtype=torch.uint8)
        begin = -memory.data_ptr() % _PAGE
        metadata = MemoryObjMetadata(
            shape=shapes[0],
            dtype=dtypes[0],
            address=0,
            phy_size=self.size,  # s3:// and azure:// read the size here when they write
            ref_count=1,
            fmt=fmt,
            shapes=shapes,
            dtypes=dtypes,
        )
        return Value(memory[begin : begin + size], metadata, None)

    def get_full_chunk_size_bytes(self) -> int:
        """Returns the bytes of a full chunk's value."""
        return self.size

    def padded(self, *parts: Buffer) -> Value:
        """Makes a value of the parts, one after the other, and zeros up to the full size.

        Raises:
            ValueError: the parts are larger than a full chunk's value.
        """
        value = self.allocate(self.metadata.get_shapes(), self.metadata.get_dtypes())
        array, end = value.raw_data.numpy(), 0
        for part in parts:
            begin, end = end, end + len(part)
            array[begin:end] = numpy.frombuffer(part, numpy.uint8)
        array[end:] = 0
        return value

    def short(self, content: bytes) -> Value:
        """Makes a value that is shorter than a full one. Not every connector can read it."""
        value = self.allocate(self.metadata.get_shapes(len(content)), self.metadata.get_dtypes())
        value.raw_data.numpy()[:] = numpy.frombuffer(content, numpy.uint8)
        return value


class _Metadata:
    """LMCache's metadata, for chunks whose tokens are single bytes."""

    use_mla = False

    def __init__(self, original: LMCacheMetadata, size: int) -> None:
        self._original = original
        self.chunk_size = size

    def get_shapes(self, num_tokens: int | None = None) -> list[torch.Size]:
        # As many shapes as LMCache has: it keeps their number in a variable of the process.
        size = self.chunk_size if num_tokens is None else num_tokens
        return [torch.Size([size]), *[torch.Size([0])] * (self._original.get_num_groups() - 1)]

    def get_dtypes(self) -> list[torch.dtype]:
        return [torch.uint8] * self._original.get_num_groups()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)
