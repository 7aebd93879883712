"""vLLM's engine client, in which every request carries its tenant."""

from __future__ import annotations

from typing import Any

from vllm.v1.engine.async_llm import AsyncLLM

from kserve_lmcache import request_rules


class TenantAsyncLLM(AsyncLLM):  # type: ignore[misc]
    """Every route's requests, generations and poolings, pass :meth:`_add_request`."""

    async def _add_request(self, request: Any, *args: Any, **kwargs: Any) -> None:
        request.cache_salt = request_rules.salt(request_rules.TENANT.get(), request.cache_salt)
        await super()._add_request(request, *args, **kwargs)
