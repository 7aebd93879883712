"""vLLM's engine client, which adds to every request what keeps its KV apart from others'."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from vllm.v1.engine.async_llm import AsyncLLM

from kserve_lmcache.engine import tenant, usage
from kserve_lmcache.engine.adapters import Adapters
from kserve_lmcache.identity.namespace import ADAPTER, TENANT


class TenantAsyncLLM(AsyncLLM):  # type: ignore[misc]
    """Adds the active tenant and the content of the adapter to all that it sends to the engine."""

    engine_core: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.engine_core = _TenantCore(self.engine_core, Adapters())

    async def generate(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        """The outputs of a request, without what the connector says of it to this server."""
        async for output in super().generate(*args, **kwargs):
            usage.take(output)
            yield output

    async def add_lora(self, lora_request: Any) -> Any:
        """Load an adapter into the engine. Its content is that of its files before."""
        await self.engine_core.adapters.content(lora_request)
        return await super().add_lora(lora_request)


class _TenantCore:
    """vLLM's client of the engine's process.

    Requests of all routes, for generation and for pooling, and those that vLLM makes of one request
    for several answers, pass :meth:`add_request_async`, and nothing else before the engine.
    """

    def __init__(self, core: Any, adapters: Adapters) -> None:
        self._core = core
        self.adapters = adapters

    async def add_request_async(self, request: Any) -> None:
        request.cache_salt = tenant.salt(tenant.TENANT.get(), request.cache_salt)
        await self._name(request, tenant.TENANT.get())
        await self._core.add_request_async(request)

    async def _name(self, request: Any, name: str) -> None:
        """Tell the engine the request's tenant and adapter, and never what a client says."""
        parameters, lora = request.sampling_params, request.lora_request
        if parameters is None:  # the KV of pooling requests with an adapter is not offloaded
            return
        extra = dict(parameters.extra_args or {})
        extra.pop(ADAPTER, None)
        extra.pop(TENANT, None)
        if name:
            extra[TENANT] = name
        if lora is not None and (content := await self.adapters.content(lora)) is not None:
            extra[ADAPTER] = content
        parameters.extra_args = extra or None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_core"], name)
