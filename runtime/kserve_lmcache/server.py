"""KServe's model server around one model."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from argparse import Namespace
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any

from kserve import model_server
from kserve.errors import ServerNotLive
from kserve.logging import logger
from kserve.protocol.dataplane import DataPlane
from vllm.config import VllmConfig

from kserve_lmcache import engine_process, request_errors
from kserve_lmcache.config.disk_tier import disk_of
from kserve_lmcache.doctor.at_start import log_findings
from kserve_lmcache.doctor.check import Subject
from kserve_lmcache.doctor.replica import Replica
from kserve_lmcache.engine_shape import EngineShape
from kserve_lmcache.identity.engine import EngineIdentity
from kserve_lmcache.local_tier import GIB
from kserve_lmcache.metrics.endpoint import metrics
from kserve_lmcache.model import LMCacheModel
from kserve_lmcache.offload import Offload
from kserve_lmcache.status import routes as status_routes


class OffloadDataPlane(DataPlane):  # type: ignore[misc]
    """KServe's data plane, with health and metadata that are true of a vLLM engine."""

    async def model_metadata(self, model_name: str) -> dict[str, Any]:
        """KServe's v2 metadata; text goes in and out by the OpenAI routes, so no tensors.

        Raises:
            ModelNotFound: answered with 404.
        """
        self.get_model_from_registry(model_name)
        return {"name": model_name, "platform": "vllm", "inputs": [], "outputs": []}

    async def ready(self) -> bool:
        """False until a generation can succeed, and after the engine died."""
        models = self.model_registry.get_models().values()
        return all([await model.healthy() for model in models])

    async def live(self) -> dict[str, str]:
        """Alive while the engine is: the port opens after it, and only a restart revives it.

        Raises:
            ServerNotLive: answered with 503.
        """
        if not await self.ready():
            raise ServerNotLive
        return {"status": "alive"}


class OffloadModelServer(model_server.ModelServer):  # type: ignore[misc]
    """KServe's server, which opens its port once the engine is up, and not before.

    KServe starts both at the same time: a default (TCP) readiness probe would pass while the
    model is still loading, and an engine that fails would be reported as a failed HTTP server.
    """

    example = ""
    watch: Callable[[], Coroutine[Any, Any, None]]

    async def _serve(self) -> None:
        engine, *servers = self.servers
        on_ready = {number: signal.signal(number, _end_start) for number in _STOP_SIGNALS}
        try:
            await engine
        except BaseException:
            for server in servers:
                server.close()
            raise
        for number, handler in on_ready.items():
            signal.signal(number, handler)
        logger.info("Ready. Try: %s", self.example)
        watching = asyncio.create_task(self.watch())
        try:
            await asyncio.gather(*servers)
        finally:
            watching.cancel()


_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def _end_start(number: int, frame: FrameType | None) -> None:
    """Nothing is being answered yet, so there is nothing to drain."""
    sys.exit(128 + number)


def serve(args: Namespace, offload: Offload, engine_config: VllmConfig) -> None:
    """Serve until SIGTERM or SIGINT, which let running requests finish.

    Raises:
        KServeLMCacheError: the engine or offloading could not start.
    """
    engine_process.mark_server(os.environ, offload.engine_file)
    server = _create_server(args)
    model = LMCacheModel(args, offload, engine_config)
    server.watch = model.watch.run
    status_routes.register(model_server.app, model.status)
    if offload.shape is not None and offload.identity is not None:
        subject = _subject(args, offload, offload.shape, offload.identity)
        log_findings(subject, logger, offloads=lambda: model.offload.enabled)
    model.load()
    for alias in (*args.served_model_name[1:], *(lora.name for lora in args.lora_modules or ())):
        server.register_model(model, alias)
    try:
        server.start([model])
    finally:
        # Also after an error in start_engine: nothing may stay behind.
        model.stop_engine()
        logger.info("The server has stopped")


def _subject(
    args: Namespace, offload: Offload, shape: EngineShape, identity: EngineIdentity
) -> Subject:
    """What the doctor looks at."""
    configuration = offload.configuration
    return Subject(
        environ=os.environ,
        remote=offload.remote,
        local_cpu_bytes=configuration.get("max_local_cpu_size") * GIB * shape.workers,
        disk=disk_of(configuration),
        chunk_bytes=configuration.get("chunk_size") * shape.kv_bytes_per_token,
        model=args.model,
        revision=args.revision,
        model_fingerprint=configuration.get("model_fingerprint"),
        replica=Replica(
            identity.inputs,
            identity.namespace,
            identity.content,
            # In a pod the pod's name.
            place=f"{socket.gethostname()}:{args.http_port}",
        ),
    )


def _create_server(args: Namespace) -> OffloadModelServer:
    server = OffloadModelServer(
        http_port=args.http_port,
        grpc_port=args.grpc_port,
        workers=args.workers,
        max_threads=args.max_threads,
        max_asyncio_workers=args.max_asyncio_workers,
        enable_grpc=args.enable_grpc,
        enable_latency_logging=args.enable_latency_logging,
        access_log_format=args.access_log_format,
        event_loop=args.event_loop,
        timeout_keep_alive=args.timeout_keep_alive,
        ssl_certfile=args.ssl_certfile,
        ssl_keyfile=args.ssl_keyfile,
    )
    server.example = _curl(args)
    server.dataplane = OffloadDataPlane(model_registry=server.registered_models)
    # The first route of a path wins: KServe's own /metrics knows this process alone.
    model_server.app.add_api_route("/metrics", metrics, methods=["GET"], include_in_schema=False)
    request_errors.register(model_server.app)
    return server


def _curl(args: Namespace) -> str:
    scheme = "https" if args.ssl_certfile else "http"
    body = {"model": args.model_name, "messages": [{"role": "user", "content": "Hello!"}]}
    return (
        f"curl {scheme}://localhost:{args.http_port}/openai/v1/chat/completions "
        f"-H 'Content-Type: application/json' -d '{json.dumps(body)}'"
    )
