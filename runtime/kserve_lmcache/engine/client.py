"""vLLM's engine client, which adds the tenant to every request."""

from __future__ import annotations

from typing import Any

from vllm.v1.engine.async_llm import AsyncLLM

from kserve_lmcache.engine import tenant


class TenantAsyncLLM(AsyncLLM):  # type: ignore[misc]
    """Requests of all routes, for generation and for pooling, pass :meth:`_add_request`."""

    async def _add_request(self, request: Any, *args: Any, **kwargs: Any) -> None:
        request.cache_salt = tenant.salt(tenant.TENANT.get(), request.cache_salt)
        await super()._add_request(request, *args, **kwargs)
