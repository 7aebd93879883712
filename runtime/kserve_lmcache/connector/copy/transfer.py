"""Copies between the paged KV cache and LMCache's memory, which is the host's.

A copy on the host is one step. A device with streams of its own takes two, with a bounded staging
buffer on the device between them::

    store   compute ──┐ (event)        ┌─▶ compute: may overwrite the blocks from here on
            gather    └▶ blocks to staging ──┐ (event)
            transfer                         └▶ staging to host

    load    compute ──┐ (event: what was computed when the load began)
            transfer  │  host to staging ──┐ (event)
            scatter   └────────────────────┴▶ staging to blocks ─▶ compute: may read them

A staging buffer has two halves, so that one is copied while the other is filled.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from kserve_lmcache.connector.copy.paged_cache import PagedCache

STAGING_BYTES = 64 * 2**20  # on the device, in each direction


@dataclass(frozen=True)
class Chunk:
    """Memory of the host, and the blocks that it is of.

    Attributes:
        memory: bytes of ``skip`` blocks and of ``blocks``, dense.
        blocks: numbers of blocks.
        skip: number of blocks at the beginning of ``memory`` that a load leaves out.
    """

    memory: torch.Tensor
    blocks: Sequence[int]
    skip: int = 0


class Transfer(Protocol):
    """Copies chunks. A method returns when the memory of the host is complete, or was read."""

    def store(self, chunks: Sequence[Chunk]) -> None:
        """Copy blocks to the host. The blocks may be overwritten by what is computed next."""

    def load(self, chunks: Sequence[Chunk]) -> None:
        """Copy to blocks. What is computed next may read them."""


def fence(device: str) -> Any:
    """An event after all that this thread has begun to compute; ``None`` on a CPU.

    Args:
        device: the type of the device.
    """
    if device == "cpu":
        return None
    return torch.get_device_module(device).current_stream().record_event()


def transfer_of(cache: PagedCache, chunk_blocks: int) -> Transfer:
    """The way for the device of a KV cache.

    Args:
        cache: the KV cache.
        chunk_blocks: blocks of a whole chunk.
    """
    if cache.device.type == "cpu":
        return HostTransfer(cache)
    return StagedTransfer(cache, chunk_blocks)


class HostTransfer:
    """Copies where the KV cache is in the memory of the host itself."""

    def __init__(self, cache: PagedCache) -> None:
        self._cache = cache

    def store(self, chunks: Sequence[Chunk]) -> None:
        """See :class:`Transfer`."""
        for chunk in chunks:
            self._cache.gather(torch.tensor(chunk.blocks), chunk.memory)

    def load(self, chunks: Sequence[Chunk]) -> None:
        """See :class:`Transfer`."""
        for chunk in chunks:
            self._cache.scatter(chunk.memory, torch.tensor(chunk.blocks), chunk.skip)


class StagedTransfer:
    """Copies to and from a device by streams and staging buffers.

    Args:
        cache: the KV cache.
        chunk_blocks: blocks of a whole chunk, which no chunk exceeds.
        staging_bytes: of each of the two staging buffers. A buffer is larger where a chunk of one
            layer needs that.
    """

    def __init__(
        self, cache: PagedCache, chunk_blocks: int, staging_bytes: int = STAGING_BYTES
    ) -> None:
        self._cache = cache
        self._device = torch.get_device_module(cache.device)
        half = max(staging_bytes // 2, chunk_blocks * max(cache.layer_bytes))
        half = -(-half // 512) * 512  # keeps the second half aligned
        self._out, self._in = (_Staging(cache.device, half, self._device) for _ in range(2))

    def store(self, chunks: Sequence[Chunk]) -> None:
        """See :class:`Transfer`."""
        staging, device = self._out, self._device
        with staging.lock:
            compute = device.current_stream()
            staging.near.wait_event(compute.record_event())
            gathered = None
            for chunk, layers, half in self._pieces(chunks, staging):
                begin, end = self._cache.span(len(chunk.blocks), layers)
                buffer = half.buffer[: end - begin]
                with device.stream(staging.near):
                    half.wait(staging.near)
                    self._cache.gather(self._numbers(chunk), buffer, layers)
                    gathered = staging.near.record_event()
                with device.stream(staging.far):
                    staging.far.wait_event(gathered)
                    chunk.memory.view(-1)[begin:end].copy_(buffer, non_blocking=True)
                    half.busy = staging.far.record_event()
            if gathered is not None:
                compute.wait_event(gathered)
            staging.finish()

    def load(self, chunks: Sequence[Chunk]) -> None:
        """See :class:`Transfer`."""
        staging, device = self._in, self._device
        with staging.lock:
            compute = device.current_stream()
            staging.near.wait_event(compute.record_event())
            scattered = None
            for chunk, layers, half in self._pieces(chunks, staging):
                begin, end = self._cache.span(chunk.skip + len(chunk.blocks), layers)
                buffer = half.buffer[: end - begin]
                with device.stream(staging.far):
                    half.wait(staging.far)
                    buffer.copy_(chunk.memory.view(-1)[begin:end], non_blocking=True)
                    arrived = staging.far.record_event()
                with device.stream(staging.near):
                    staging.near.wait_event(arrived)
                    self._cache.scatter(buffer, self._numbers(chunk), chunk.skip, layers)
                    half.busy = scattered = staging.near.record_event()
            if scattered is not None:
                compute.wait_event(scattered)
            staging.finish()

    def _pieces(
        self, chunks: Sequence[Chunk], staging: _Staging
    ) -> Iterator[tuple[Chunk, range, _Half]]:
        """Parts of chunks that fit into half a staging buffer, each with the half to use."""
        number = 0
        for chunk in chunks:
            blocks, begin = chunk.skip + len(chunk.blocks), 0
            for end in range(1, len(self._cache.layers) + 1):
                first, last = self._cache.span(blocks, range(begin, min(end + 1, self._layers)))
                if end == self._layers or last - first > staging.size:
                    yield chunk, range(begin, end), staging.halves[number % 2]
                    number, begin = number + 1, end

    @property
    def _layers(self) -> int:
        return len(self._cache.layers)

    def _numbers(self, chunk: Chunk) -> torch.Tensor:
        return torch.tensor(chunk.blocks, device=self._cache.device)


class _Half:
    """Half a staging buffer.

    Attributes:
        buffer: its memory.
        busy: the event after which the buffer may be filled again; ``None`` at first.
    """

    def __init__(self, buffer: torch.Tensor) -> None:
        self.buffer = buffer
        self.busy: Any = None

    def wait(self, stream: Any) -> None:
        """Make ``stream`` wait until the buffer may be filled."""
        if self.busy is not None:
            stream.wait_event(self.busy)


class _Staging:
    """A staging buffer and the streams that use it.

    Attributes:
        size: bytes of one half.
        near: the stream of copies within the device.
        far: the stream of copies to or from the host.
        lock: held by the one thread that uses the buffer.
    """

    def __init__(self, device: torch.device, size: int, module: Any) -> None:
        buffer = torch.empty(2 * size, dtype=torch.uint8, device=device)
        self.size = size
        self.halves = [_Half(half) for half in buffer.split(size)]
        self.near, self.far = module.Stream(), module.Stream()
        self.lock = threading.Lock()
        self._module = module

    def finish(self) -> None:
        """Wait until both streams have done everything."""
        for half in self.halves:
            if half.busy is not None:
                half.busy.synchronize()
