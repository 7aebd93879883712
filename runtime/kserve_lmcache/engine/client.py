"""vLLM's engine client, which adds the tenant to every request."""

from __future__ import annotations

from typing import Any

from vllm.v1.engine.async_llm import AsyncLLM

from kserve_lmcache.engine import tenant


class TenantAsyncLLM(AsyncLLM):  # type: ignore[misc]
    """Adds the active tenant to all that it sends to the engine."""

    engine_core: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.engine_core = _TenantCore(self.engine_core)


class _TenantCore:
    """vLLM's client of the engine's process.

    Requests of all routes, for generation and for pooling, and those that vLLM makes of one request
    for several answers, pass :meth:`add_request_async`, and nothing else before the engine.
    """

    def __init__(self, core: Any) -> None:
        self._core = core

    async def add_request_async(self, request: Any) -> None:
        request.cache_salt = tenant.salt(tenant.TENANT.get(), request.cache_salt)
        await self._core.add_request_async(request)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_core"], name)
