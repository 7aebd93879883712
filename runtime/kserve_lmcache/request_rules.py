"""What a request may say about the cache, whichever OpenAI route it comes by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_PARAMETERS = "kv_transfer_params"


def refusal(request: Any) -> str:
    """Why a request is refused; empty when it is not.

    Transfer parameters choose keys and peers. They are an operator's business, and some end the
    engine; the connector drops them once more, for routes that do not pass here.
    """
    extra = getattr(request, "vllm_xargs", None) or {}
    if getattr(request, _PARAMETERS, None) is not None or _PARAMETERS in extra:
        return f"{_PARAMETERS} is not accepted: this server chooses the keys of its cache itself"
    return ""


def isolate(request: Any, headers: Mapping[str, str], tenant_header: str | None) -> str:
    """Put the tenant into the request's ``cache_salt``, which vLLM's own cache keeps apart too.

    The salt that goes to the engine is a digest: nobody can choose another tenant's, and no
    character of it can surprise anything.

    Returns:
        Why the request is refused; empty when it is not.
    """
    salt = getattr(request, "cache_salt", None) or ""
    tenant = (headers.get(tenant_header) or "") if tenant_header else ""
    if not salt and not tenant:
        return ""
    if not hasattr(request, "cache_salt"):
        return f"{tenant_header} cannot be kept on this route: vLLM has no cache_salt here"
    canonical = json.dumps([tenant, salt]).encode("utf-8", "surrogatepass")
    request.cache_salt = hashlib.sha256(canonical).hexdigest()
    return ""
