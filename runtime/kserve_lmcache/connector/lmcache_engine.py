"""The only place that touches LMCache's internals (0.5.1 to 0.5.6).

``tests/integration/test_lmcache_contract.py`` fails when an upgrade changes one of them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec
import zmq
from lmcache.integration.vllm.utils import ENGINE_NAME, lmcache_get_or_create_config
from lmcache.integration.vllm.vllm_service_factory import VllmServiceFactory
from lmcache.integration.vllm.vllm_v1_adapter import LoadSpec
from lmcache.v1.cache_engine import LMCacheEngineBuilder
from lmcache.v1.offload_server.message import OffloadMsg
from lmcache.v1.rpc_utils import get_zmq_rpc_path_lmcache, get_zmq_socket

from kserve_lmcache.connector.cpu_copy import CPUPagedMemoryConnector

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from lmcache.integration.vllm.vllm_v1_adapter import LMCacheConnectorV1Impl
    from lmcache.v1.metadata import LMCacheMetadata
    from lmcache.v1.offload_server.zmq_server import ZMQOffloadServer
    from vllm.config import VllmConfig


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


def load_nothing(adapter: LMCacheConnectorV1Impl, request_id: str, computed_tokens: int) -> None:
    """Leave the scheduler's side of LMCache as after a lookup that found nothing.

    Args:
        adapter: the scheduler's.
        request_id: of a request that must not be looked up.
        computed_tokens: found in vLLM's own cache.
    """
    adapter.load_specs[request_id] = LoadSpec(
        vllm_cached_tokens=computed_tokens, lmcache_cached_tokens=0, can_load=False
    )


def leave_unloaded(adapter: LMCacheConnectorV1Impl, request_id: str, computed_tokens: int) -> None:
    """Let the scheduler's side of LMCache not count on what it found and chose not to load.

    Below ``min_retrieve_tokens`` it remembers those tokens as the request's own, and when the
    request comes back after a preemption, an assertion that it has them ends the engine.
    """
    spec = adapter.load_specs.get(request_id)
    if spec is not None:
        spec.lmcache_cached_tokens = min(spec.lmcache_cached_tokens, computed_tokens)


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
