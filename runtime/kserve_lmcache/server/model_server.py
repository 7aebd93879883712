"""KServe's model server around one model."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Collection, MutableMapping
from types import FrameType
from typing import Any

from kserve import model_server
from kserve.protocol.grpc.server import GRPCServer
from vllm.config import VllmConfig

from kserve_lmcache.config.configuration import Configuration
from kserve_lmcache.config.settings import route_groups
from kserve_lmcache.engine import process
from kserve_lmcache.engine.compiled_code import Keeper
from kserve_lmcache.engine.failures import NO_CAUSE, Failures, report_errors
from kserve_lmcache.engine.model import LMCacheModel
from kserve_lmcache.engine.plan import OffloadPlan
from kserve_lmcache.errors import EngineDiedError
from kserve_lmcache.metrics import start_up_timing
from kserve_lmcache.metrics.table import metric
from kserve_lmcache.server import announcement
from kserve_lmcache.server.data_plane import NoRepositoryExtension, OffloadDataPlane, Repository
from kserve_lmcache.server.ending import end
from kserve_lmcache.server.http import routes, vllm_app
from kserve_lmcache.server.http.error_responses import PREFIX
from kserve_lmcache.server.http.limits import Limits, limits_of
from kserve_lmcache.server.lifecycle import Lifecycle, State
from kserve_lmcache.server.rest_server import OffloadRESTServer
from kserve_lmcache.server.start_up_responder import StartUpResponder
from kserve_lmcache.server.status.monitor import Monitor
from kserve_lmcache.server.status.report import status, versions

logger = logging.getLogger(__name__)


class OffloadModelServer(model_server.ModelServer):  # type: ignore[misc]
    """KServe's model server, which serves only after the engine has started.

    KServe starts both at the same time: it reports that it is ready while the model still loads,
    and reports an engine that fails as a failed HTTP server.

    Args:
        args: the flags of the server.
        model: the model.
        limits: the limits and rules for requests.
        leave_seconds: how long the server takes requests after SIGTERM, with readiness down.
        drain_seconds: how long active requests may take after that.
        exit_on_engine_death: whether the server ends when the engine dies.
        responder: answers on the port until the engine has started.
        route_groups: the groups of routes that are on (setting ``enable_routes``).
        keeper: keeps the compiled code once the server is ready.
        root_routes: whether the routes below the prefix are served at the root as well.
        others: arguments of KServe's server.
    """

    def __init__(
        self,
        args: Namespace,
        model: LMCacheModel,
        limits: Limits,
        leave_seconds: float,
        drain_seconds: float,
        exit_on_engine_death: bool,
        responder: StartUpResponder | None = None,
        route_groups: Collection[str] = (),
        keeper: Keeper | None = None,
        root_routes: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(registered_models=Repository(), **others)
        # KServe replaces 8080 by 8443 when there are certificates, also where 8080 was given.
        if "http_port" in others:
            self.http_port = others["http_port"]
        self.args = args
        self.model = model
        self.limits = limits
        self.leave_seconds = leave_seconds
        self.drain_seconds = drain_seconds
        self.exit_on_engine_death = exit_on_engine_death
        self.responder = responder
        self.route_groups = route_groups
        self.keeper = keeper
        self.root_routes = root_routes
        self.monitor = Monitor(model)
        self.lifecycle = Lifecycle()
        self.dataplane = OffloadDataPlane(self.registered_models, self.lifecycle)
        if "repository" not in route_groups:
            self.model_repository_extension = NoRepositoryExtension(self.registered_models)

    def start(self, models: list[Any]) -> None:
        """Serve until a signal or the engine's death.

        Raises:
            EngineDiedError: the engine died.
            KServeLMCacheError: the engine did not start.
        """
        self._register_and_check_atleast_one_model_is_ready(models)
        asyncio.run(self._serve())
        if self.lifecycle.state is State.FAILED:
            cause = self.model.cause_of_death() or NO_CAUSE
            raise EngineDiedError(f"{self.lifecycle.reason}: {cause}")

    async def _serve(self) -> None:
        self.setup_event_loop()
        for number in _STOP_SIGNALS:
            signal.signal(number, _end_start)
        (engine,) = self.servers
        await engine
        self._publish_versions()
        rest = self._create_rest_server()
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number, stop)
        start_up_timing.reached(start_up_timing.READY)
        times = start_up_timing.table(start_up_timing.moments(), self.model.worker_moments())
        # One line: the log of a start fits a screen.
        logger.info("Start: %s", "; ".join(" ".join(row.split()) for row in times.splitlines()))
        logger.info("Ready. Try: %s", _curl(self.args))
        self.lifecycle.ready()
        if self.keeper is not None:
            # A daemon: a server that is asked to end does not wait for a slow volume.
            threading.Thread(target=self.keeper.save, name="compiled-code", daemon=True).start()
        async with self.model.vllm_app.router.lifespan_context(self.model.vllm_app):
            await self._run(rest, stop)

    def _publish_versions(self) -> None:
        metric("build_info", **versions()).set(1)
        identity = self.model.offload.identity
        if identity is not None:
            metric("namespace_info", namespace=identity.namespace).set(1)

    async def _run(self, rest: OffloadRESTServer, stop: asyncio.Event) -> None:
        """Serve until the port fails, a signal comes, or the engine dies."""
        serving = asyncio.ensure_future(rest.start())
        if self.enable_grpc:
            self._grpc_server = GRPCServer(
                self.grpc_port,
                self.dataplane,
                self.model_repository_extension,
                kwargs=vars(self.args),
                grace_period=_GRPC_GRACE_SECONDS,
            )
            grpc = asyncio.ensure_future(self._grpc_server.start(self.max_threads))
        watching = asyncio.ensure_future(self.monitor.run())
        stopping = asyncio.ensure_future(stop.wait())
        dying = asyncio.ensure_future(self._engine_death())
        await asyncio.wait({serving, stopping, dying}, return_when=asyncio.FIRST_COMPLETED)
        if stopping.done() and self.lifecycle.is_leaving:
            logger.info("Stopping: requests are taken for %g s more", self.leave_seconds)
            await asyncio.wait(
                {serving, dying}, timeout=self.leave_seconds, return_when=asyncio.FIRST_COMPLETED
            )
        if dying.done():
            # Active requests get their errors first, and probes see the failure.
            await asyncio.sleep(_DEATH_SECONDS)
            await self.lifecycle.idle(_DEATH_SECONDS)
        elif stopping.done():
            await self._drain()
        rest.close()
        if self.enable_grpc:
            await self._grpc_server.stop()
            await grpc
        await serving
        for task in (watching, stopping, dying):
            task.cancel()

    def _on_signal(self, number: signal.Signals, stop: asyncio.Event) -> None:
        if stop.is_set():
            _exit_at_once("A second signal came")
        # First of all, so that a probe fails before the server stops. SIGINT is a person's, whose
        # server no balancer has to take out.
        if number == signal.SIGTERM and self.leave_seconds:
            self.lifecycle.leave()
        else:
            self.lifecycle.drain()
        stop.set()

    async def _drain(self) -> None:
        self.lifecycle.drain()
        logger.info("Stopping: %s active requests", self.lifecycle.active)
        if not await self.lifecycle.idle(self.drain_seconds):
            _exit_at_once(
                f"{self.lifecycle.active} requests did not finish in {self.drain_seconds:g} s "
                "(drain_timeout)"
            )

    async def _engine_death(self) -> None:
        """Wait for the engine's death, and then for ever when the server outlives its engine."""
        while not self.model.engine_client.errored:
            await asyncio.sleep(_WATCH_SECONDS)
        self.lifecycle.fail("vLLM's engine has died")
        logger.error("vLLM's engine has died")
        if not self.exit_on_engine_death:
            await asyncio.Event().wait()

    def _create_rest_server(self) -> OffloadRESTServer:
        return OffloadRESTServer(
            self.args,
            self.model,
            self.limits,
            self.lifecycle,
            lambda: status(self.monitor, self.model.offload, self.model.model_name),
            self.route_groups,
            self.responder,
            root_routes=self.root_routes,
            data_plane=self.dataplane,
            model_repository_extension=self.model_repository_extension,
            http_port=self.http_port,
            access_log_format=self.access_log_format,
            event_loop=self.event_loop,
            timeout_keep_alive=self.timeout_keep_alive,
            ssl_certfile=self.ssl_certfile,
            ssl_keyfile=self.ssl_keyfile,
        )


_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_WATCH_SECONDS = 0.2
_DEATH_SECONDS = 1.0
_GRPC_GRACE_SECONDS = 1  # no call takes longer


def _end_start(number: int, frame: FrameType | None) -> None:
    """End at a signal during the start, when no request is active."""
    sys.exit(128 + number)


def _exit_at_once(reason: str) -> None:
    """End this process, and with it the engine's processes (:mod:`.engine.process`)."""
    logging.shutdown()
    os._exit(end(f"{reason}: ending at once", 128 + signal.SIGTERM))


def serve(
    args: Namespace,
    offload: OffloadPlan,
    engine_config: VllmConfig,
    responder: StartUpResponder,
    environ: MutableMapping[str, str],
    keeper: Keeper | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, after which active requests may finish.

    Args:
        args: the flags of the server.
        offload: the plan of offloading.
        engine_config: vLLM's configuration.
        responder: answers on the port until the engine has started.
        environ: the environment of this process, which the engine's processes inherit.
        keeper: keeps the compiled code once the server is ready.

    Raises:
        KServeLMCacheError: the engine or offloading could not start.
    """
    process.mark_server(environ, offload.engine_file)
    failures = Failures.collect(environ)
    report_errors(environ)
    groups = route_groups(offload.configuration.get("enable_routes"), environ)
    environ.update(routes.switches(groups))
    model = LMCacheModel(
        args, offload, engine_config, functools.partial(vllm_app.build, args, groups), failures
    )
    server = _create_server(args, model, offload.configuration, responder, groups, keeper)
    announcement.keep_announced(
        offload.remote,
        announcement.replica_of(args, offload),
        offloads=lambda: model.offload.enabled,
    )
    model.load()
    for alias in (*args.served_model_name[1:], *(lora.name for lora in args.lora_modules or ())):
        server.register_model(model, alias)
    try:
        server.start([model])
    finally:
        # Also after an error in start_engine, so that no process stays behind.
        model.stop_engine()
        logger.info("The server has stopped")


def _create_server(
    args: Namespace,
    model: LMCacheModel,
    configuration: Configuration,
    responder: StartUpResponder,
    groups: Collection[str],
    keeper: Keeper | None,
) -> OffloadModelServer:
    return OffloadModelServer(
        args,
        model,
        limits_of(args, configuration, offloads=lambda: model.offload.enabled),
        leave_seconds=configuration.get("drain_delay"),
        drain_seconds=configuration.get("drain_timeout"),
        exit_on_engine_death=configuration.get("exit_on_engine_death"),
        responder=responder,
        route_groups=groups,
        keeper=keeper,
        root_routes=configuration.get("root_routes"),
        http_port=args.http_port,
        grpc_port=args.kserve_grpc_port,
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


def _curl(args: Namespace) -> str:
    scheme = "https" if args.ssl_certfile else "http"
    body = {"model": args.model_name, "messages": [{"role": "user", "content": "Hello!"}]}
    return (
        f"curl {scheme}://localhost:{args.http_port}{PREFIX}/v1/chat/completions "
        f"-H 'Content-Type: application/json' -d '{json.dumps(body)}'"
    )
