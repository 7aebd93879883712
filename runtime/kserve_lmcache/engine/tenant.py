"""The tenant of a request, and the ``cache_salt`` that keeps its KV apart."""

from __future__ import annotations

import hashlib
import json
from contextvars import ContextVar

# The tenant of the active request. The HTTP middleware sets it from the request's header.
TENANT: ContextVar[str] = ContextVar("tenant", default="")


def salt(tenant: str, own: str | None) -> str | None:
    """The ``cache_salt`` of a request for the engine; vLLM's prefix cache is keyed by it as well.

    The salt is a digest, so that a request cannot choose the salt of another tenant.

    Args:
        tenant: the tenant; empty when tenants are not separated.
        own: the ``cache_salt`` of the request.

    Returns:
        64 hexadecimal digits; ``None`` without a tenant and without a salt of the request.
    """
    if not own and not tenant:
        return None
    canonical = json.dumps([tenant, own or ""]).encode("utf-8", "surrogatepass")
    return hashlib.sha256(canonical).hexdigest()
