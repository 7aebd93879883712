"""The tenant of a request, and the ``cache_salt`` that keeps its KV apart."""

from __future__ import annotations

import hashlib
import json
from contextvars import ContextVar

# The tenant of the active request. The HTTP middleware sets it from the request's header.
TENANT: ContextVar[str] = ContextVar("tenant", default="")


def salt(tenant: str, own: str | None) -> str | None:
    """The ``cache_salt`` that the engine is given, which vLLM's own cache keeps apart too.

    It is a digest: nobody can choose another tenant's, and no character of it can surprise
    anything.

    Args:
        tenant: empty where tenants are not told apart.
        own: what the request said.
    """
    if not own and not tenant:
        return None
    canonical = json.dumps([tenant, own or ""]).encode("utf-8", "surrogatepass")
    return hashlib.sha256(canonical).hexdigest()
