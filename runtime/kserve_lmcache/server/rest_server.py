"""KServe's HTTP server with the routes and the middleware of this package."""

from __future__ import annotations

import contextlib
import socket
from argparse import Namespace
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import fastapi
import uvicorn
from kserve.model_server import app as kserve_app
from kserve.protocol.rest.server import RESTServer

from kserve_lmcache.server.certificates import refreshed
from kserve_lmcache.server.http import cache_routes, errors, middleware
from kserve_lmcache.server.http.limits import Limits
from kserve_lmcache.server.http.register import register_after_kserves, register_before_kserves
from kserve_lmcache.server.http.root_routes import RootRoutes
from kserve_lmcache.server.lifecycle import Lifecycle
from kserve_lmcache.server.start_up_responder import ANY_HOST, StartUpResponder

_CLOSE_SECONDS = 2  # for connections whose responses are already written


class _Server(uvicorn.Server):
    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until the end, with the certificate of the files as they are at the time."""
        if not self.config.loaded:
            self.config.load()
        async with contextlib.AsyncExitStack() as stack:
            files = (self.config.ssl_certfile, self.config.ssl_keyfile)
            if self.config.ssl is not None and all(files):
                cert_file, key_file = (Path(str(file)) for file in files)
                await stack.enter_async_context(refreshed(self.config.ssl, cert_file, key_file))
            await super().serve(sockets=sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the model server: uvicorn closes the port at the first one."""
        yield


class OffloadRESTServer(RESTServer):  # type: ignore[misc]
    """The HTTP server of one application.

    Args:
        app: the FastAPI application; by default KServe's.
        model: the model, whose engine has started.
        status: returns the response of ``GET /offload``.
        route_groups: the groups of routes that are on (setting ``enable_routes``).
        responder: owns the port until the server starts; without it the server opens the port.
        root_routes: whether the routes below the prefix are served at the root as well.
        others: arguments of KServe's server.
    """

    def __init__(
        self,
        args: Namespace,
        model: Any,
        limits: Limits,
        lifecycle: Lifecycle,
        status: Callable[[], dict[str, Any]],
        route_groups: Collection[str] = (),
        responder: StartUpResponder | None = None,
        app: fastapi.FastAPI = kserve_app,
        root_routes: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(app, **others)
        self.app = app
        self.model = model
        self.limits = limits
        self.lifecycle = lifecycle
        self.status = status
        self.route_groups = route_groups
        self.responder = responder
        self.root_routes = root_routes
        self._shows_docs = args.enable_docs_url
        self.config.host = args.host or ANY_HOST
        self.config.timeout_graceful_shutdown = _CLOSE_SECONDS
        self.config.ssl_ca_certs = args.ssl_ca_certs
        self.config.ssl_cert_reqs = args.ssl_cert_reqs
        if args.ssl_ciphers:
            self.config.ssl_ciphers = args.ssl_ciphers
        self._server = _Server(self.config)
        self.create_application()

    async def start(self) -> None:
        """Serve until :meth:`close`."""
        sockets = self.responder.hand_over() if self.responder is not None else None
        await self._server.serve(sockets=sockets)

    def close(self) -> None:
        """Begin to close the port and its connections; returns at once."""
        self._server.should_exit = True

    def create_application(self) -> None:
        """Add middleware, routes and exception handlers to the application."""
        self._add_middlewares(self.app)
        self._register_endpoints(self.app)
        self._add_exception_handlers(self.app)

    def _add_middlewares(self, app: fastapi.FastAPI) -> None:
        super()._add_middlewares(app)
        middleware.install(app, self.limits, self.lifecycle)
        if self.root_routes:
            app.add_middleware(RootRoutes)

    def _register_endpoints(self, app: fastapi.FastAPI) -> None:
        repository = self.dataplane.model_registry
        register_before_kserves(
            app, repository, self.model, self.status, self._shows_docs, self.root_routes
        )
        if "cache" in self.route_groups:
            cache_routes.register(app, self.model, self.limits.cache_admin_key_file)
        super()._register_endpoints(app)
        register_after_kserves(app, self.model.vllm_app, self.route_groups)

    def _add_exception_handlers(self, app: fastapi.FastAPI) -> None:
        super()._add_exception_handlers(app)
        errors.register(app)
