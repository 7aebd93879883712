"""Internals of LMCache's engine and of its adapter to vLLM (LMCache 0.5.1 to 0.5.6).

``tests/integration/test_lmcache_contract.py`` fails when an upgrade changes one of them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import torch
import zmq
from lmcache.integration.vllm.utils import lmcache_get_or_create_config
from lmcache.integration.vllm.vllm_v1_adapter import LoadSpec, extract_request_configs
from lmcache.observability import LMCStatsMonitor
from lmcache.v1.offload_server.message import OffloadMsg
from lmcache.v1.rpc_utils import get_zmq_rpc_path_lmcache, get_zmq_socket

if TYPE_CHECKING:
    from lmcache.integration.vllm.vllm_v1_adapter import (
        LMCacheConnectorMetadata,
        LMCacheConnectorV1Impl,
    )
    from lmcache.v1.config import LMCacheEngineConfig
    from lmcache.v1.metadata import LMCacheMetadata
    from lmcache.v1.offload_server.zmq_server import ZMQOffloadServer
    from vllm.distributed.kv_transfer.kv_connector.v1.lmcache_connector import LMCacheConnectorV1
    from vllm.v1.request import Request


def process_config() -> LMCacheEngineConfig:
    """The configuration that LMCache reads once in a process."""
    return lmcache_get_or_create_config()


def adapter_of(connector: LMCacheConnectorV1) -> LMCacheConnectorV1Impl:
    """LMCache's adapter behind vLLM's connector."""
    return connector._lmcache_engine


def stop(adapter: LMCacheConnectorV1Impl) -> None:
    """Stop LMCache's services. LMCache flushes what waits to be stored."""
    if (server := adapter._manager.offload_server) is not None:
        from vllm.distributed.parallel_state import get_tensor_model_parallel_rank

        end_offload_server(
            server, adapter.lmcache_engine_metadata, get_tensor_model_parallel_rank()
        )
    adapter.shutdown()


def end_offload_server(server: ZMQOffloadServer, metadata: LMCacheMetadata, rank: int) -> None:
    """End the server's thread by an empty request, before LMCache closes the server's socket.

    LMCache closes the socket while the thread waits on the socket. A socket of libzmq belongs to
    one thread: libzmq aborts the process then, and LMCache flushes nothing.
    """
    server.running = False
    port = int(os.environ.get("LMCACHE_OFFLOAD_RPC_PORT", 100))
    path = get_zmq_rpc_path_lmcache(metadata.engine_id or "default", "offload", port, rank)
    with (
        zmq.Context() as context,
        get_zmq_socket(context, path, "ipc", zmq.REQ, "connect") as client,
    ):
        client.linger = 0
        client.send(msgspec.msgpack.encode(OffloadMsg(hashes=[], slot_mapping=[], offsets=[])))
        server.thread.join(timeout=2)


def never_wait_for_room(adapter: LMCacheConnectorV1Impl) -> None:
    """Make a chunk that does not fit into the local CPU tier a miss.

    LMCache waits without end for room to load into (``busy_loop``), in the middle of an engine
    step. Nothing is computed meanwhile, so nothing that would make room ends. LMCache has no
    setting for this wait and takes no tier of ours, so this changes the worker's own tier.
    """
    backends = adapter.lmcache_engine.storage_manager.storage_backends
    if (memory := backends.get("LocalCPUBackend")) is not None:
        memory.allocate = functools.partial(memory.allocate, busy_loop=False)
        memory.batched_allocate = functools.partial(memory.batched_allocate, busy_loop=False)


def found_tokens(
    adapter: LMCacheConnectorV1Impl, request: Request
) -> tuple[int, int, dict[str, str] | None]:
    """The result of LMCache's lookup of a request in the scheduler's process.

    Args:
        adapter: the scheduler's.
        request: a request that LMCache looked up.

    Returns:
        The number of tokens that LMCache has, the number of tokens that vLLM has, and what
        LMCache puts into the keys beside the tokens.

    Raises:
        KeyError: LMCache did not look the request up.
    """
    found = adapter.load_specs[request.request_id]
    configs = extract_request_configs(request.sampling_params)
    return found.lmcache_cached_tokens, found.vllm_cached_tokens, configs


def load(
    adapter: LMCacheConnectorV1Impl,
    request_id: str,
    *,
    tokens: list[int],
    computed_tokens: int,
    blocks: Sequence[int],
    block_size: int,
    request_configs: Mapping[str, str] | None,
) -> set[int]:
    """Load chunks into this worker's paged KV cache, and unpin them.

    Args:
        adapter: the worker's.
        request_id: the request whose lookup pinned the chunks.
        tokens: the prompt up to the last token to load; a whole number of LMCache's chunks.
        computed_tokens: how many of ``tokens`` vLLM has already.
        blocks: the blocks of ``tokens``, in order.
        block_size: tokens of one block.
        request_configs: what LMCache puts into the keys beside the tokens.

    Returns:
        The blocks that are not, or not wholly, loaded.

    Raises:
        Exception: LMCache failed; the state of all blocks is unknown.
    """
    engine, chunk = adapter.lmcache_engine, adapter.config.chunk_size
    places = torch.arange(min(len(tokens), len(blocks) * block_size))
    slots = torch.tensor(blocks)[places // block_size] * block_size + places % block_size
    # vLLM computes the last token of a whole prompt. vLLM has given no block for this token when
    # the token is the first of a block: the unfinished chunk that holds it is left out then.
    count = len(places) if len(places) == len(tokens) else len(places) // chunk * chunk
    wanted = (places >= computed_tokens // chunk * chunk)[:count]
    arguments = {
        "kvcaches": list(adapter.kv_caches.values()),
        "slot_mapping": slots[:count].to(adapter.device),
        "vllm_cached_tokens": computed_tokens,
    }
    try:
        if adapter.config.use_layerwise:
            # The last item of the generator is the mask that retrieve() returns.
            *_, loaded = engine.retrieve_layer(tokens[:count], wanted, sync=True, **arguments)
        else:
            loaded = engine.retrieve(
                tokens[:count],
                wanted,
                request_configs=request_configs,
                req_id=request_id,
                **arguments,
            )
    finally:
        engine.lookup_unpin(request_id)
    missing = places >= computed_tokens
    missing[:count] &= ~loaded.cpu()
    return set((slots[missing] // block_size).tolist())


def saved_tokens(
    adapter: LMCacheConnectorV1Impl, metadata: LMCacheConnectorMetadata
) -> dict[str, int]:
    """Tokens of each request that a step saves. Tokens of a chunk begun before count again."""
    chunk = adapter.config.chunk_size
    return {
        each.req_id: len(each.token_ids) - each.save_spec.skip_leading_tokens // chunk * chunk
        for each in metadata.requests
        if each.save_spec is not None and each.save_spec.can_save
    }


def token_bytes(adapter: LMCacheConnectorV1Impl) -> int:
    """Bytes of one token's KV in this worker."""
    metadata = adapter.lmcache_engine.metadata
    return sum(
        shape.numel() * dtype.itemsize
        for shape, dtype in zip(metadata.get_shapes(1), metadata.get_dtypes(), strict=True)
    )


def drop_saves(adapter: LMCacheConnectorV1Impl, metadata: LMCacheConnectorMetadata) -> None:
    """Take all requests out of a step. Saves that LMCache began layer by layer do not end."""
    adapter._layerwise_save_storers.clear()
    requests = [each.req_id for each in metadata.requests]
    metadata.requests = []
    unpin(adapter, requests)


def unpin(adapter: LMCacheConnectorV1Impl, requests: Iterable[str]) -> None:
    """Unpin the chunks that lookups of ``requests`` pinned, if there are any."""
    if (engine := adapter.lmcache_engine) is not None:
        for request_id in requests:
            engine.lookup_unpin(request_id)


def set_cached_tokens(
    adapter: LMCacheConnectorV1Impl, request_id: str, computed_tokens: int, cached_tokens: int
) -> None:
    """Replace the lookup's result from which LMCache decides, in the scheduler, what to save.

    Args:
        adapter: the scheduler's.
        request_id: a request that is about to be scheduled.
        computed_tokens: tokens that vLLM has without any load.
        cached_tokens: tokens that LMCache need not save.
    """
    adapter.load_specs[request_id] = LoadSpec(
        vllm_cached_tokens=computed_tokens, lmcache_cached_tokens=cached_tokens, can_load=False
    )


def limit_cached_tokens(
    adapter: LMCacheConnectorV1Impl, request_id: str, computed_tokens: int
) -> None:
    """Make LMCache, in the scheduler, forget tokens that it found and does not load.

    Below ``min_retrieve_tokens`` LMCache remembers these tokens as the request's own. When the
    request comes back after a preemption, an assertion about them ends the engine.
    """
    spec = adapter.load_specs.get(request_id)
    if spec is not None:
        spec.lmcache_cached_tokens = min(spec.lmcache_cached_tokens, computed_tokens)


def forget(adapter: LMCacheConnectorV1Impl, request_id: str) -> None:
    """Remove a request from LMCache's state in the scheduler."""
    for kept in (
        adapter.load_specs,
        adapter._requests_priority,
        adapter._request_trackers,
        adapter._unfinished_requests,
    ):
        kept.pop(request_id, None)
    adapter.lookup_client.clear_lookup_status(request_id)


def plugin_connectors(adapter: LMCacheConnectorV1Impl, names: Mapping[str, str]) -> dict[str, Any]:
    """The remote connectors that LMCache made by plugins.

    Args:
        adapter: the worker's.
        names: the names of tiers by plugin; other plugins are left out.

    Returns:
        The connectors by the name of their tier, in the order in which LMCache asks them.

    Raises:
        RuntimeError: LMCache could not make one. LMCache would miss for ever.
    """
    engine, found = adapter.lmcache_engine, {}
    for plugin in engine.config.remote_storage_plugins or ():
        if plugin in names:
            backend = engine.storage_manager.storage_backends.get(f"RemoteBackend-{plugin}")
            if backend is None or backend.connection is None:
                raise RuntimeError(
                    f"LMCache could not make the {names[plugin]} tier; its log says why"
                )
            found[names[plugin]] = backend.connection.getWrappedConnector()
    return found


def is_first(adapter: LMCacheConnectorV1Impl) -> bool:
    """Whether this worker is the first of the engine's workers."""
    return bool(adapter.lmcache_engine.metadata.is_first_rank())


def local_cpu_bytes(adapter: LMCacheConnectorV1Impl) -> tuple[int, int]:
    """Bytes in use and capacity in bytes of this worker's local CPU tier."""
    used = LMCStatsMonitor.GetOrCreate().local_cache_usage_bytes
    return int(used), int(adapter.config.max_local_cpu_size * 2**30)


def worker_failure(adapter: LMCacheConnectorV1Impl) -> str:
    """Why LMCache does not work in this worker; empty when LMCache works."""
    manager = adapter._manager
    if manager._init_failed:
        return _last_line(manager._init_failed_reason)
    if manager.lmcache_engine is None:
        return "LMCache created no cache engine"
    if not manager.lmcache_engine.is_healthy():
        return "LMCache's cache engine reports that it is not healthy"
    return ""


def scheduler_failure(adapter: LMCacheConnectorV1Impl) -> str:
    """Why LMCache does not work in the scheduler's process; empty when LMCache works."""
    manager = adapter._manager
    if manager._init_failed:
        return _last_line(manager._init_failed_reason)
    return "" if manager.lookup_client is not None else "LMCache created no lookup client"


def effective_config(adapter: LMCacheConnectorV1Impl) -> dict[str, Any]:
    """The configuration that LMCache uses, key by key."""
    return dict(adapter.config.to_dict())


def _last_line(text: str) -> str:
    """The line of a formatted traceback that names the exception."""
    lines = [line for line in text.strip().splitlines() if line and not line.startswith(" ")]
    return lines[-1] if lines else "unknown"
