"""The HTTP server without an engine: all that stands in front of vLLM's handlers is real."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.responses import ORJSONResponse
from kserve.protocol.model_repository_extension import ModelRepositoryExtension

from kserve_lmcache.cli.arguments import parse_arguments
from kserve_lmcache.engine.model import LMCacheModel
from kserve_lmcache.server.data_plane import OffloadDataPlane, Repository
from kserve_lmcache.server.http import vllm_app
from kserve_lmcache.server.http.limits import Limits
from kserve_lmcache.server.lifecycle import Lifecycle
from kserve_lmcache.server.rest_server import OffloadRESTServer
from kserve_lmcache.server.start_up_responder import StartUpResponder
from tests.support.ports import free_port
from tests.support.tls import Certificate

NAME = "org/model"
PREFIX = "/openai"
CHAT = f"{PREFIX}/v1/chat/completions"
Handler = Callable[[Any, Any], Awaitable[Any]]


class MockModel(LMCacheModel):
    """A model without an engine, whose handlers a test writes."""

    def __init__(self, *groups: str) -> None:
        args = parse_arguments([f"--model_name={NAME}"])
        offload: Any = SimpleNamespace(
            configuration={}, identity=None, engine_file=None, cache_server=None
        )
        super().__init__(args, offload, engine_config=None, build_app=None)  # type: ignore[arg-type]
        self.alive = True
        self.vllm_app = vllm_app.build(args, groups, ("generate",), None)
        self.openai_serving_chat = SimpleNamespace(create_chat_completion=self._chat)
        self.openai_serving_models = SimpleNamespace(
            lora_requests={"adapter": None}, show_available_models=self._listed
        )
        self.vllm_app.state.serving_tokenization = SimpleNamespace(create_tokenize=self._chat)
        self.chat: Handler = echo

    async def _chat(self, request: Any, raw_request: Any) -> Any:
        return await self.chat(request, raw_request)

    async def _listed(self) -> Any:
        data = [{"id": name, "object": "model"} for name in (NAME, "adapter")]
        return SimpleNamespace(model_dump=lambda: {"object": "list", "data": data})

    async def healthy(self) -> bool:
        return self.alive


async def echo(request: Any, raw_request: Any) -> Any:
    return {"said": request.messages[-1]["content"]}


class HTTPServer:
    """One that answers."""

    def __init__(
        self, model: MockModel, lifecycle: Lifecycle, port: int, client: httpx.Client
    ) -> None:
        self.model = model
        self.lifecycle = lifecycle
        self.port = port
        self.client = client

    def chat(self, content: str = "Hi", **fields: Any) -> dict[str, Any]:
        return {"model": NAME, "messages": [{"role": "user", "content": content}], **fields}


@contextmanager
def serving(
    *groups: str,
    certificate: Certificate | None = None,
    responder: StartUpResponder | None = None,
    root_routes: bool = False,
    **limits: Any,
) -> Iterator[HTTPServer]:
    """Serve on a port, in a thread; with a certificate by TLS, whose client trusts anybody.

    Args:
        groups: groups of routes that are on.
        certificate: of the server.
        responder: has the port; a free one without it.
        root_routes: whether the routes below the prefix are at the root as well.
        limits: fields of the limits.
    """
    files = {}
    if certificate is not None:
        files = {"ssl_certfile": certificate.cert_file, "ssl_keyfile": certificate.key_file}
    model, lifecycle, repository = MockModel(*groups), Lifecycle(), Repository()
    repository.update(model)
    rest = OffloadRESTServer(
        parse_arguments(["--host=127.0.0.1"]),
        model,
        Limits(**limits),
        lifecycle,
        dict,
        groups,
        responder,
        app=FastAPI(default_response_class=ORJSONResponse),
        root_routes=root_routes,
        data_plane=OffloadDataPlane(repository, lifecycle),
        model_repository_extension=ModelRepositoryExtension(repository),
        http_port=responder.listeners[0].getsockname()[1] if responder else free_port(),
        **{name: str(file) for name, file in files.items()},
    )
    url = f"http{'s' if files else ''}://127.0.0.1:{rest.config.port}"
    client = httpx.Client(base_url=url, timeout=20, verify=False)  # noqa: S501
    server = HTTPServer(model, lifecycle, rest.config.port, client)
    lifecycle.ready()
    thread = threading.Thread(target=lambda: asyncio.run(rest.start()), daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while True:
        try:
            server.client.get("/v2")
            break
        except httpx.TransportError:
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.02)
    try:
        yield server
    finally:
        server.client.close()
        rest.close()
        thread.join(10)
        assert not thread.is_alive()
