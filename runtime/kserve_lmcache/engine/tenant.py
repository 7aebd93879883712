"""The tenant of a request, and the ``cache_salt`` that keeps its KV apart."""

from __future__ import annotations

import hashlib
import json
import re
from contextvars import ContextVar

# The start of every salt that is a digest. Readers of KV-cache events take plain hexadecimal digits
# for the digest of a picture.
PREFIX = "kserve-tenant-"
# What former versions made of a tenant. Their chunks may be in the store.
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MOST_LETTERS = 256  # of a salt that stays as it is

# The tenant of the active request. The HTTP middleware sets it from the request's header.
TENANT: ContextVar[str] = ContextVar("tenant", default="")


def salt(tenant: str, own: str | None) -> str | None:
    """The ``cache_salt`` of a request for the engine; vLLM's prefix cache is keyed by it as well.

    With a tenant the salt is a digest, so that a request cannot choose the salt of another tenant.
    Without one, the salt of the request stays: a router that follows the KV-cache events knows a
    request by its salt. A salt that looks like a tenant's, is long, or is no text becomes a digest
    as well.

    Args:
        tenant: the tenant; empty when tenants are not separated.
        own: the ``cache_salt`` of the request.

    Returns:
        The salt; ``None`` without a tenant and without a salt of the request.
    """
    if not own and not tenant:
        return None
    if own and not tenant and _is_plain(own):
        return own
    canonical = json.dumps([tenant, own or ""]).encode("utf-8", "surrogatepass")
    return PREFIX + hashlib.sha256(canonical).hexdigest()


def _is_plain(own: str) -> bool:
    if len(own) > _MOST_LETTERS or own.startswith(PREFIX) or _DIGEST.fullmatch(own):
        return False
    # Text that cannot be encoded would end the engine, which hashes the salt.
    return not any("\ud800" <= letter <= "\udfff" for letter in own)
