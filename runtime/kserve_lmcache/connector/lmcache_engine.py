"""The only place that touches LMCache's internals (0.5.1 to 0.5.6).

``tests/integration/test_lmcache_contract.py`` fails when an upgrade changes one of them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import torch
import zmq
from lmcache.integration.vllm.utils import ENGINE_NAME, lmcache_get_or_create_config
from lmcache.integration.vllm.vllm_service_factory import VllmServiceFactory
from lmcache.integration.vllm.vllm_v1_adapter import LoadSpec, extract_request_configs
from lmcache.observability import LMCStatsMonitor
from lmcache.v1.cache_engine import LMCacheEngineBuilder
from lmcache.v1.offload_server.message import OffloadMsg
from lmcache.v1.rpc_utils import get_zmq_rpc_path_lmcache, get_zmq_socket

from kserve_lmcache.config.tier_plugins import PLUGINS
from kserve_lmcache.connector.cpu_copy import CPUPagedMemoryConnector
from kserve_lmcache.connector.metadata import Source

if TYPE_CHECKING:
    from lmcache.integration.vllm.vllm_v1_adapter import (
        LMCacheConnectorMetadata,
        LMCacheConnectorV1Impl,
    )
    from lmcache.v1.metadata import LMCacheMetadata
    from lmcache.v1.offload_server.zmq_server import ZMQOffloadServer
    from vllm.config import VllmConfig
    from vllm.v1.request import Request

    from kserve_lmcache.tiers.guard.tier import Tier


def create_on_cpu(vllm_config: VllmConfig) -> None:
    """Create this worker's LMCache engine with our copy path for the CPU.

    LMCache's factory takes the engine that is already there under its name; its own dispatch
    has no connector for a CPU and would turn caching off.

    Raises:
        NotImplementedError: the model or the configuration needs a copy that we do not have.
    """
    from vllm.distributed.parallel_state import get_tp_group

    config = lmcache_get_or_create_config()
    metadata = VllmServiceFactory(config, vllm_config, "worker").get_or_create_metadata()
    group = get_tp_group()
    LMCacheEngineBuilder.get_or_create(
        ENGINE_NAME,
        config,
        metadata,
        CPUPagedMemoryConnector.from_metadata(config, metadata),
        group.broadcast,
        group.broadcast_object,
    )


def check_on_cpu(adapter: LMCacheConnectorV1Impl, layers: Sequence[torch.Tensor]) -> None:
    """See that this worker's paged KV cache is what our copy path was made for.

    Raises:
        NotImplementedError: it has another shape.
    """
    engine = adapter.lmcache_engine
    if engine is not None and isinstance(engine.gpu_connector, CPUPagedMemoryConnector):
        engine.gpu_connector.check(layers)


def stop(adapter: LMCacheConnectorV1Impl) -> None:
    """Stop LMCache's services; what waits to be stored is flushed."""
    if (server := adapter._manager.offload_server) is not None:
        from vllm.distributed.parallel_state import get_tensor_model_parallel_rank

        end_offload_server(
            server, adapter.lmcache_engine_metadata, get_tensor_model_parallel_rank()
        )
    adapter.shutdown()


def end_offload_server(server: ZMQOffloadServer, metadata: LMCacheMetadata, rank: int) -> None:
    """End the server's thread, by an empty request, before its socket is closed.

    LMCache closes the socket while the thread waits on it. Sockets belong to one thread in
    libzmq, which aborts the process then, and nothing is flushed.
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


def never_wait(adapter: LMCacheConnectorV1Impl) -> None:
    """Make a full local CPU tier a miss for whatever does not fit into it.

    LMCache waits without end for room to load into (``busy_loop``), in the middle of an engine
    step: while it waits nothing is computed, and nothing that would make room ends. There is no
    setting for it, and no way to hand in a tier of ours, so this worker's one is told.
    """
    backends = adapter.lmcache_engine.storage_manager.storage_backends
    if (memory := backends.get("LocalCPUBackend")) is not None:
        memory.allocate = functools.partial(memory.allocate, busy_loop=False)
        memory.batched_allocate = functools.partial(memory.batched_allocate, busy_loop=False)


def answer_lookups(
    adapter: LMCacheConnectorV1Impl,
    count: Callable[[int, int], None],
    record: Callable[[str, Exception], None],
) -> None:
    """Make a lookup that fails in this worker a miss.

    LMCache's server would not answer then, and the scheduler wait for ``lookup_timeout_ms``.

    Args:
        adapter: the worker's.
        count: is told how many chunks were asked for, and how many the local tier has.
        record: is told what failed, and the exception. Both are called in the server's thread.
    """
    engine = adapter.lmcache_engine
    lookup = engine.lookup

    def answer(hashes: Sequence[int], lookup_id: str, **kwargs: Any) -> int:
        try:
            found = int(lookup(hashes=hashes, lookup_id=lookup_id, **kwargs))
            pinned = engine.lookup_pins.get(lookup_id, {})
            count(len(hashes), len(pinned.get("LocalCPUBackend", ())))
            return found
        except Exception as error:
            record("lookup", error)
            return 0

    engine.lookup = answer


def source(adapter: LMCacheConnectorV1Impl, request: Request, blocks: Sequence[int]) -> Source:
    """What to load of a request, as LMCache looked it up in the scheduler's process.

    Args:
        adapter: the scheduler's.
        request: that was looked up, and found.
        blocks: all of the request's.

    Raises:
        KeyError: it was not looked up.
    """
    found = adapter.load_specs[request.request_id]
    return Source(
        list(request.all_token_ids[: found.lmcache_cached_tokens]),
        found.vllm_cached_tokens,
        blocks,
        extract_request_configs(request.sampling_params),
    )


def load(
    adapter: LMCacheConnectorV1Impl, request_id: str, source: Source, block_size: int
) -> set[int]:
    """Load into this worker's paged KV cache, and let go of the chunks.

    Args:
        adapter: the worker's.
        request_id: whose lookup holds the chunks.
        source: what to load.
        block_size: tokens of one block.

    Returns:
        The blocks that are not, or not wholly, loaded.

    Raises:
        Exception: whatever LMCache does; then nothing can be told of any block.
    """
    engine, chunk = adapter.lmcache_engine, adapter.config.chunk_size
    places = torch.arange(min(len(source.tokens), len(source.blocks) * block_size))
    slots = torch.tensor(source.blocks)[places // block_size] * block_size + places % block_size
    # vLLM computes the last token of a whole prompt, and has given no block for it if it were the
    # first in one: the unfinished chunk that it is in is left out then.
    count = len(places) if len(places) == len(source.tokens) else len(places) // chunk * chunk
    tokens = source.tokens[:count]
    wanted = (places >= source.computed_tokens // chunk * chunk)[:count]
    arguments = {
        "kvcaches": list(adapter.kv_caches.values()),
        "slot_mapping": slots[:count].to(adapter.device),
        "vllm_cached_tokens": source.computed_tokens,
    }
    try:
        if adapter.config.use_layerwise:
            # The last thing that it gives is what was loaded, as the other does.
            *_, loaded = engine.retrieve_layer(tokens, wanted, sync=True, **arguments)
        else:
            loaded = engine.retrieve(
                tokens,
                wanted,
                request_configs=source.request_configs,
                req_id=request_id,
                **arguments,
            )
    finally:
        engine.lookup_unpin(request_id)
    missing = places >= source.computed_tokens
    missing[:count] &= ~loaded.cpu()
    return set((slots[missing] // block_size).tolist())


def saved_tokens(
    adapter: LMCacheConnectorV1Impl, metadata: LMCacheConnectorMetadata
) -> dict[str, int]:
    """How many tokens of each request a step saves; those of a chunk begun before count again."""
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


def save_nothing(adapter: LMCacheConnectorV1Impl, metadata: LMCacheConnectorMetadata) -> None:
    """Take all requests out of a step; what was begun of them, layer by layer, is not ended."""
    adapter._layerwise_save_storers.clear()
    requests = [each.req_id for each in metadata.requests]
    metadata.requests = []
    release(adapter, requests)


def release(adapter: LMCacheConnectorV1Impl, requests: Iterable[str]) -> None:
    """Let go of the chunks that a lookup pinned for ``requests``; none need have been."""
    if (engine := adapter.lmcache_engine) is not None:
        for request_id in requests:
            engine.lookup_unpin(request_id)


def expect(
    adapter: LMCacheConnectorV1Impl, request_id: str, computed_tokens: int, cached_tokens: int
) -> None:
    """Correct what LMCache takes for stored when it decides, in the scheduler, what to save.

    Args:
        adapter: the scheduler's.
        request_id: of a request that is to be scheduled.
        computed_tokens: that vLLM has without any load.
        cached_tokens: that need not be saved.
    """
    adapter.load_specs[request_id] = LoadSpec(
        vllm_cached_tokens=computed_tokens, lmcache_cached_tokens=cached_tokens, can_load=False
    )


def leave_unloaded(adapter: LMCacheConnectorV1Impl, request_id: str, computed_tokens: int) -> None:
    """Let the scheduler's side of LMCache not count on what it found and chose not to load.

    Below ``min_retrieve_tokens`` it remembers those tokens as the request's own, and when the
    request comes back after a preemption, an assertion that it has them ends the engine.
    """
    spec = adapter.load_specs.get(request_id)
    if spec is not None:
        spec.lmcache_cached_tokens = min(spec.lmcache_cached_tokens, computed_tokens)


def forget(adapter: LMCacheConnectorV1Impl, request_id: str) -> None:
    """Forget, in the scheduler, a request that LMCache will not be asked about again."""
    for kept in (
        adapter.load_specs,
        adapter._requests_priority,
        adapter._request_trackers,
        adapter._unfinished_requests,
    ):
        kept.pop(request_id, None)
    adapter.lookup_client.clear_lookup_status(request_id)


def tiers(adapter: LMCacheConnectorV1Impl) -> dict[str, Tier]:
    """This worker's tiers that are ours, by name (``disk``, ``remote``), as they have in metrics.

    Raises:
        RuntimeError: LMCache was told of one, and could not make it.
    """
    engine, found = adapter.lmcache_engine, {}
    names = {plugin.name: plugin.tier for plugin in PLUGINS}
    for plugin in engine.config.remote_storage_plugins or ():
        if plugin in names:
            backend = engine.storage_manager.storage_backends.get(f"RemoteBackend-{plugin}")
            # LMCache has logged why it is not there, and would miss for ever.
            if backend is None or backend.connection is None:
                raise RuntimeError(
                    f"LMCache could not make the {names[plugin]} tier; its log says why"
                )
            found[names[plugin]] = backend.connection.getWrappedConnector().tier
    return found


def is_first(adapter: LMCacheConnectorV1Impl) -> bool:
    """Whether this worker is the first of the engine's."""
    return bool(adapter.lmcache_engine.metadata.is_first_rank())


def local_cpu_bytes(adapter: LMCacheConnectorV1Impl) -> tuple[int, int]:
    """What of this worker's local CPU tier is used, and its size."""
    used = LMCStatsMonitor.GetOrCreate().local_cache_usage_bytes
    return int(used), int(adapter.config.max_local_cpu_size * 2**30)


def failure(adapter: LMCacheConnectorV1Impl) -> str:
    """Why LMCache does not work in this process; empty when it does."""
    manager = adapter._manager
    if manager._init_failed:
        return _last_line(manager._init_failed_reason)
    if manager.lmcache_engine is None:
        return "LMCache created no cache engine"
    if not manager.lmcache_engine.is_healthy():
        return "LMCache's cache engine reports that it is not healthy"
    return ""


def scheduler_failure(adapter: LMCacheConnectorV1Impl) -> str:
    """Why LMCache cannot look anything up for the scheduler; empty when it can."""
    manager = adapter._manager
    if manager._init_failed:
        return _last_line(manager._init_failed_reason)
    return "" if manager.lookup_client is not None else "LMCache created no lookup client"


def effective_config(adapter: LMCacheConnectorV1Impl) -> dict[str, Any]:
    """The configuration that LMCache uses, key by key."""
    return dict(adapter.config.to_dict())


def _last_line(text: str) -> str:
    """The exception itself, out of a formatted traceback."""
    lines = [line for line in text.strip().splitlines() if line and not line.startswith(" ")]
    return lines[-1] if lines else "unknown"
