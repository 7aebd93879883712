"""vLLM's own application, without the routes that are off."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Collection
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.routing import APIRoute

from kserve_lmcache.compat.vllm import AuthenticationMiddleware, XRequestIdMiddleware, build_app
from kserve_lmcache.server.http import errors, routes

logger = logging.getLogger(__name__)

# Middleware that this package installs in front of all routes (:mod:`.middleware`).
_IN_FRONT = (CORSMiddleware, AuthenticationMiddleware, XRequestIdMiddleware)


def build(args: Namespace, groups: Collection[str], tasks: Any, model_config: Any) -> FastAPI:
    """Build the application; ``init_app_state`` sets its state.

    Args:
        args: the server's arguments.
        groups: the groups of routes to add (setting ``enable_routes``).
        tasks: the tasks of the model that the engine lists.
        model_config: vLLM's configuration of the model, which decides about routes for pooling.
    """
    app = build_app(args, tasks, model_config)
    app.user_middleware = [entry for entry in app.user_middleware if entry.cls not in _IN_FRONT]
    rows = routes.known(routes.VLLM)
    unknown = {name for route in app.routes for name in routes.names(route)} - set(rows)
    if unknown:
        logger.warning("Routes of this vLLM that are not served: %s", ", ".join(sorted(unknown)))
    kept = [route for route in app.routes if routes.is_wanted(route, routes.VLLM, groups)]
    app.router.routes[:] = kept
    for route in kept:
        if isinstance(route, APIRoute) and all(rows[name].also_v1 for name in routes.names(route)):
            app.router.add_api_route(
                f"/v1{route.path}",
                route.endpoint,
                methods=list(route.methods),
                dependencies=route.dependencies,
                responses=route.responses,
            )
    errors.register(app)
    # SageMaker's standards have already built the middleware, with the former handlers.
    app.middleware_stack = app.build_middleware_stack()
    return app
