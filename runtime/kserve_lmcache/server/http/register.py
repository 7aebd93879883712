"""Registers the routes of the server: ours, KServe's, and vLLM's below the prefix.

The first route that fits a path serves it. A route that is added before KServe's replaces it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import JSONResponse, Response
from kserve.errors import ModelNotFound
from kserve.model_repository import ModelRepository
from kserve.protocol.rest.openai.dataplane import OpenAIDataPlane
from kserve.protocol.rest.openai.endpoints import register_openai_endpoints
from starlette.routing import Mount

from kserve_lmcache.compat import vllm
from kserve_lmcache.server.http import routes
from kserve_lmcache.server.http.error_responses import PREFIX
from kserve_lmcache.server.http.metrics_endpoint import MetricsEndpoint
from kserve_lmcache.server.status import routes as status_routes

TENSORS_UNSUPPORTED = (
    "This model takes and returns text, not tensors: use "
    f"{PREFIX}/v1/chat/completions, {PREFIX}/v1/completions or "
    f"{PREFIX}/v1/embeddings"
)


def register_before_kserves(
    app: FastAPI,
    repository: ModelRepository,
    model: Any,
    status: Callable[[], dict[str, Any]],
    docs: bool = False,
    at_root: bool = False,
) -> None:
    """Add the routes that replace routes of KServe's.

    Args:
        app: KServe's application.
        repository: the models by their names. KServe's OpenAI routes use a copy of it.
        model: the one model; its ``openai_serving_models`` lists its names, its ``totals`` are the
            values of this package's metrics, and its ``find_adapter`` asks vLLM's resolvers.
        status: returns what ``GET /offload`` shows.
        docs: whether the page of all routes is served (``--enable_docs_url``).
        at_root: whether the routes below the prefix are served at the root as well.
    """
    router = APIRouter(include_in_schema=False)
    router.add_api_route("/metrics", MetricsEndpoint(model.totals).answer, methods=["GET"])
    for path in (
        "/v1/models/{model_name}:predict",
        "/v1/models/{model_name}:explain",
        "/v2/models/{model_name}/infer",
        "/v2/models/{model_name}/versions/{model_version}/infer",
    ):
        router.add_api_route(path, _TensorRoutes(repository).answer, methods=["POST"])
    if docs:
        router.add_api_route("/docs", _page_of_routes, methods=["GET"])
    app.include_router(router)
    status_routes.register(app, status)
    listing = APIRouter(prefix=PREFIX, tags=["OpenAI"])
    names = _Models(model, repository, with_kserves=at_root or not PREFIX)
    listing.add_api_route("/v1/models", names.list, methods=["GET"])
    # A name may contain slashes, as the id of a model on the hub does.
    listing.add_api_route("/v1/models/{name:path}", names.one, methods=["GET"])
    app.include_router(listing)
    register_openai_endpoints(app, _OneModel(repository, model))


def register_after_kserves(app: FastAPI, vllm_app: FastAPI, groups: Collection[str]) -> None:
    """Remove KServe's routes that are off, and mount vLLM's application."""
    rows = routes.known(routes.KSERVE)
    app.router.routes[:] = [
        route
        for route in app.routes
        if not any(name in rows for name in routes.names(route))
        or routes.is_wanted(route, routes.KSERVE, groups)
    ]
    app.router.routes.append(Mount(PREFIX, app=vllm_app, name="openai"))


async def _page_of_routes() -> Response:
    return get_swagger_ui_html(openapi_url="/openapi.json", title="KServe ModelServer")


class _OneModel(OpenAIDataPlane):  # type: ignore[misc]
    """KServe's data plane, in which a name means what it means to vLLM's own server.

    A request without a name is for the only model. ``VLLM_SKIP_MODEL_NAME_VALIDATION`` makes any
    name one of the only model, and ``VLLM_ALLOW_RUNTIME_LORA_UPDATING`` lets vLLM's resolvers look
    for an adapter of an unknown name.
    """

    def __init__(self, repository: ModelRepository, model: Any) -> None:
        super().__init__(repository)
        self._model = model

    async def get_model(self, name: str | None) -> Any:
        """The model of this name."""
        return await super().get_model(self._meant(name))

    async def model_ready(self, model_name: str | None, *others: Any) -> Any:
        """Whether the model of this name is ready. KServe's routes ask this first."""
        name = self._meant(model_name)
        if self.model_registry.get_model(name) is None:
            await self._model.find_adapter(name)
        return await super().model_ready(name, *others)

    def _meant(self, name: str | None) -> str:
        only: str = self._model.model_name
        if not name:
            return only
        is_known = self.model_registry.get_model(name) is not None
        return name if is_known or not vllm.skips_model_names() else only


class _TensorRoutes:
    """The routes of KServe's inference protocols, which carry tensors."""

    def __init__(self, repository: ModelRepository) -> None:
        self.repository = repository

    async def answer(self, model_name: str) -> Response:
        """Answer 404 for an unknown model, else 501."""
        if self.repository.get_model(model_name) is None:
            raise ModelNotFound(model_name)
        raise NotImplementedError(TENSORS_UNSUPPORTED)


class _Models:
    """OpenAI's list of models, made from vLLM's list, which has the adapters too.

    Args:
        model: the one model.
        repository: the models by their names.
        with_kserves: whether the responses have the fields of KServe's v1 protocol as well, whose
            route has the same path at the root.
    """

    def __init__(self, model: Any, repository: ModelRepository, with_kserves: bool) -> None:
        self.model = model
        self.repository = repository
        self.with_kserves = with_kserves

    async def list(self) -> Response:
        """All models."""
        listed = (await self.model.openai_serving_models.show_available_models()).model_dump()
        if self.with_kserves:
            listed["models"] = list(self.repository.get_models())
        return JSONResponse(listed)

    async def one(self, name: str, request: Request) -> Response:
        """One model."""
        listed = (await self.model.openai_serving_models.show_available_models()).model_dump()
        found = [card for card in listed["data"] if card["id"] == name]
        if not found:
            raise ModelNotFound(name)
        if self.with_kserves:
            found[0] |= {"name": name, "ready": await self.model.healthy()}
        return JSONResponse(found[0])
