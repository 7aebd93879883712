"""Refuses what chooses cache keys in requests, on every route, and bodies that would hide it.

``kv_transfer_params`` chooses keys and peers, and some values end the engine. Nothing tells a
router's from a client's. The connector ignores them as well. A ``uuid`` of a picture stands for its
content in vLLM's keys and ours, and nobody compares it with the content; so do the hashes of
pictures in a request by tokens.
"""

from __future__ import annotations

import json
import re
from typing import Any

_PARAMETERS = "kv_transfer_params"
# The names as JSON may have them: literally, or with escaped letters.
_MAY_HOLD = re.compile(rb"kv_transfer_params|\"uuid\"|mm_hashes|\\u00[4-7]", re.IGNORECASE)
# What a part of a message's content has beside its ``uuid`` where that names the content.
_MEDIA = re.compile(r"(input_)?(image|audio|video)(_\w+)?")
# Schemas, in which any name is a property's.
_NO_CONTENT = {"tools", "functions", "response_format", "structured_outputs", "text"}
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
        return (
            f"{_PARAMETERS} is not accepted: a client could choose cache keys, and engines to read "
            "KV from. Disaggregated prefill needs servers that do not offload by LMCache"
        )
    if _names_content(request):
        return (
            "uuid and mm_hashes of pictures, audio and video are not accepted: this server hashes "
            "the content itself"
        )
    return ""


def _names_content(request: Any) -> bool:
    """Whether a request has content under a name that its client chose."""
    if not isinstance(request, dict):
        return False
    features = request.get("features")
    if isinstance(features, dict) and features.get("mm_hashes"):
        return True
    waiting = [request.get(name) for name in request.keys() - _NO_CONTENT]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            if value.get("uuid") is not None and any(map(_MEDIA.fullmatch, value)):
                return True
            waiting += value.values()
    return False


def _has_parameters(value: Any, place: tuple[str, ...]) -> bool:
    for name in place:
        value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, dict):
        return False
    # At the top level null means that it is absent. Elsewhere null is a value.
    return _PARAMETERS in value if place else value.get(_PARAMETERS) is not None
