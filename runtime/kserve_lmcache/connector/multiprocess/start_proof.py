"""Proves, in a worker that starts, the way of a chunk to the cache server and back."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import torch

from kserve_lmcache.cache_server.messages import Nothing, Objects, Proofs, Row, Slots
from kserve_lmcache.cache_server.objects import PROOF, fault_of, name_of, payload_begin, seal
from kserve_lmcache.cache_server.rpc import CacheServerError, Client
from kserve_lmcache.connector.copy.transfer import Chunk, Transfer
from kserve_lmcache.connector.proof import Proof, ProofError
from kserve_lmcache.metrics.snapshots import NOT_PROVEN

if TYPE_CHECKING:
    from kserve_lmcache.connector.copy.paged_cache import PagedCache
    from kserve_lmcache.connector.copy.pages import Pages

_SECONDS = 2.0  # deadline of a call


@dataclass(frozen=True)
class ProvenChunk:
    """How the proof reaches the server.

    Attributes:
        client: of the server.
        row: of this worker.
        memory: returns the memory of an object at an offset.
        payload_bytes: of an object.
    """

    client: Client
    row: Row
    memory: Callable[[int], memoryview]
    payload_bytes: int


def prove(cache: PagedCache, transfer: Transfer, pages: Pages, chunk: ProvenChunk) -> str:
    """Store random bytes in the server, read them, and let the server prove the tiers below.

    Args:
        cache: the KV cache.
        transfer: copies its blocks.
        pages: what vLLM's configuration says of a block.
        chunk: how to reach the server.

    Returns:
        What was proven, in words.

    Raises:
        ProofError: something else came back.
    """
    began, most = time.monotonic(), chunk.payload_bytes // cache.block_bytes
    proof = Proof(cache.layers, pages.blocks, most)
    if not proof.count:
        return f"{NOT_PROVEN}: the KV cache has {pages.blocks} blocks"
    digest, row = os.urandom(32), msgspec.structs.replace(chunk.row, model=PROOF)
    objects, name = Objects(row, [digest]), name_of(row, digest)
    begin, size = payload_begin(chunk.payload_bytes), proof.count * pages.bytes

    def payload(offset: int) -> torch.Tensor:
        return torch.frombuffer(chunk.memory(offset), dtype=torch.uint8)[begin : begin + size]

    def store(blocks: Sequence[int]) -> None:
        (offset,) = _slot(chunk.client.call("reserve", objects, _SECONDS))
        transfer.store([Chunk(payload(offset), blocks)])
        seal(name, chunk.memory(offset), chunk.payload_bytes)
        chunk.client.call("complete", objects, _SECONDS)

    def load(blocks: Sequence[int]) -> None:
        (offset,) = _slot(chunk.client.call("read", objects, _SECONDS))
        transfer.load([Chunk(payload(offset), blocks)])
        if fault := fault_of(name, chunk.memory(offset)):
            raise ProofError(f"what was stored did not come back from the cache server: {fault}")
        chunk.client.call("release", objects, _SECONDS)

    try:
        with torch.inference_mode():
            proof.run(store, load)
        milliseconds = 1000 * (time.monotonic() - began)
        chunk.client.call("discard", objects, _SECONDS)
        proofs: Proofs = chunk.client.call("prove", Nothing(), _SECONDS)
    except CacheServerError as error:
        return f"{NOT_PROVEN}: {error}"
    if proofs.wrong:
        raise ProofError(proofs.wrong)
    said = [
        f"{proof.count} of {pages.blocks} blocks of {len(cache.layers)} layers came back, "
        f"{size} bytes in {milliseconds:.1f} ms"
    ]
    return "; ".join([*said, *(f"{name} tier: {text}" for name, text in proofs.tiers.items())])


def _slot(slots: Slots) -> Sequence[int]:
    """The one slot.

    Raises:
        CacheServerError: there is none.
    """
    if len(slots.offsets) != 1 or slots.offsets[0] < 0:
        raise CacheServerError("the cache server has no room for a chunk")
    return slots.offsets
