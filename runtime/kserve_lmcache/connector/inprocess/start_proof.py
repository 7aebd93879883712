"""Proves, in a worker that starts, the copy path and every tier that is up."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from kserve_lmcache.compat.lmcache import copy_path
from kserve_lmcache.connector.copy.paged_cache import PagedCache
from kserve_lmcache.connector.proof import Copy, Proof, ProofError
from kserve_lmcache.metrics.snapshots import NOT_PROVEN
from kserve_lmcache.tiers.guard.proof import WrongValueError

if TYPE_CHECKING:
    from lmcache.integration.vllm.vllm_v1_adapter import LMCacheConnectorV1Impl
    from lmcache.v1.gpu_connector.gpu_connectors import GPUConnectorInterface

    from kserve_lmcache.connector.copy.pages import Pages

# A tier connects while the engine starts. The start waits so long for one that does not answer.
_TIER_SECONDS = 0.3


def prove(
    adapter: LMCacheConnectorV1Impl,
    kv_caches: Mapping[str, torch.Tensor],
    pages: Pages,
    tiers: Mapping[str, Any],
) -> str:
    """Store and load random bytes, by the worker's copy path and through its tiers.

    Args:
        adapter: the worker's.
        kv_caches: a tensor for each layer, by the layer's name.
        pages: what vLLM's configuration says of a block.
        tiers: LMCache's connectors to the tiers, by the tier's name.

    Returns:
        What was proven, in words.

    Raises:
        ProofError: something else came back.
        UnknownLayoutError: the KV cache is no list of blocks.
    """
    began, layers = time.monotonic(), PagedCache.of(kv_caches, pages).layers
    proof = Proof(layers, pages.blocks, adapter.config.chunk_size // pages.tokens)
    if not proof.count:
        return f"{NOT_PROVEN}: the KV cache has {pages.blocks} blocks"
    copies = copy_path.copy_path(adapter)
    memory_obj = copy_path.allocate(adapter, proof.count * pages.tokens)
    if copies is None or memory_obj is None:
        return f"{NOT_PROVEN}: LMCache's local CPU tier has no room for a chunk"
    try:
        with torch.inference_mode():
            proof.run(
                *copies_of(copies, memory_obj, [each.tensor for each in layers], pages.tokens)
            )
        milliseconds = 1000 * (time.monotonic() - began)
        said = [
            f"{proof.count} of {pages.blocks} blocks of {len(layers)} layers came back, "
            f"{proof.count * pages.bytes} bytes in {milliseconds:.1f} ms"
        ]
        said += [f"{name} tier: {_through(name, tiers[name], memory_obj)}" for name in tiers]
    finally:
        memory_obj.ref_count_down()
    return "; ".join(said)


def copies_of(
    copy: GPUConnectorInterface, memory_obj: Any, layers: Sequence[torch.Tensor], tokens: int
) -> tuple[Copy, Copy]:
    """How a copy path of LMCache's stores and loads blocks.

    Args:
        copy: the copy path.
        memory_obj: the chunk.
        layers: of the KV cache.
        tokens: of a block.

    Returns:
        What copies blocks into the chunk, and what copies the chunk to blocks.
    """

    def whole(copies: Callable[..., None], blocks: Sequence[int]) -> None:
        begins = torch.tensor(blocks) * tokens
        slots = (begins[:, None] + torch.arange(tokens)).flatten().to(layers[0].device)
        copies([memory_obj], [0], [len(slots)], kvcaches=list(layers), slot_mapping=slots)

    return (
        functools.partial(whole, copy.batched_from_gpu),
        functools.partial(whole, copy.batched_to_gpu),
    )


def _through(name: str, tier: Any, memory_obj: Any) -> str:
    try:
        return str(tier.prove(memory_obj, _TIER_SECONDS))
    except WrongValueError as error:
        raise ProofError(
            f"what was stored did not come back from the {name} tier: {error}"
        ) from error
