"""Refuses ``kv_transfer_params`` in requests, on every route, and bodies that would hide it.

These parameters choose cache keys and peers, and some values end the engine. The connector ignores
them as well.
"""

from __future__ import annotations

import json
import re
from typing import Any

_PARAMETERS = "kv_transfer_params"
# The name as JSON may have it: literally, or with escaped letters.
_MAY_HOLD = re.compile(rb"kv_transfer_params|\\u00[4-7]", re.IGNORECASE)
# The objects in which a request may have it, by the keys that lead there.
_PLACES = ((), ("vllm_xargs",), ("extra_args",), ("sampling_params", "extra_args"))


def refusal_of_encoding(body: bytes, content_type: str) -> str:
    """The reason why a body is refused whose text is not UTF-8; empty when it is accepted.

    JSON is UTF-8 (RFC 8259). Python's parser, which the routes use, takes UTF-16 and UTF-32 too.

    Args:
        body: the whole body.
        content_type: the header. A form may hold files, and is no JSON.
    """
    if content_type.lower().startswith("multipart/form-data"):
        return ""
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"the body is not UTF-8 at byte {error.start}"
    # Letters of UTF-16 and UTF-32 have bytes that are zero, which no JSON has in UTF-8.
    if (zero := body.find(0)) >= 0:
        return f"the body is not UTF-8 without zero bytes, which byte {zero} is"
    return ""


def refusal(body: bytes) -> str:
    """The reason why a request with this body is refused; empty when it is accepted.

    A body that is not JSON is accepted here; the route refuses it.
    """
    if not _MAY_HOLD.search(body):
        return ""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if any(_has_parameters(request, place) for place in _PLACES):
        return f"{_PARAMETERS} is not accepted: this server chooses its cache keys itself"
    return ""


def _has_parameters(value: Any, place: tuple[str, ...]) -> bool:
    for name in place:
        value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, dict):
        return False
    # At the top level null means that it is absent. Elsewhere null is a value.
    return _PARAMETERS in value if place else value.get(_PARAMETERS) is not None
