"""What a request may say about the cache, whichever route it comes by.

``kv_transfer_params`` choose keys and peers. They are an operator's business, and some end the
engine: they are refused here, on the body of every request, and the connector drops them once
more. The tenant goes into ``cache_salt`` where all routes meet, in front of the engine.
"""

from __future__ import annotations

import json
import re
from typing import Any

_PARAMETERS = "kv_transfer_params"
# As a body may hold the name: as it is, or with escapes in it.
_MAY_HOLD = re.compile(rb"kv_transfer_params|\\u00[4-7]", re.IGNORECASE)
# Where vLLM's requests have more parameters of the engine: body[first][second]...
_PLACES = ((), ("vllm_xargs",), ("extra_args",), ("sampling_params", "extra_args"))


def refusal(body: bytes) -> str:
    """Why a request with this JSON body is refused; empty when it is not.

    What is no JSON is left to the route.
    """
    if not _MAY_HOLD.search(body):
        return ""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if any(_names_them(request, place) for place in _PLACES):
        return f"{_PARAMETERS} is not accepted: this server chooses the keys of its cache itself"
    return ""


def _names_them(value: Any, place: tuple[str, ...]) -> bool:
    for name in place:
        value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, dict):
        return False
    # On the request itself null is what leaving it out is; anywhere else it is an argument.
    return _PARAMETERS in value if place else value.get(_PARAMETERS) is not None
