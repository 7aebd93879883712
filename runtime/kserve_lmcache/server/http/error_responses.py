"""Error responses in the shape of the protocol, OpenAI's or KServe's, that a path belongs to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus

from fastapi.responses import JSONResponse
from kserve.protocol.rest.openai.endpoints import OPENAI_ROUTE_PREFIX

# The prefix of the OpenAI routes: empty, or with a slash at its start and none at its end.
PREFIX: str = OPENAI_ROUTE_PREFIX
RETRY_AFTER = {"Retry-After": "1"}  # seconds
# With an empty prefix both protocols share one tree of paths; these paths are KServe's.
_KSERVES = re.compile(
    r"/|/metrics|/offload|/v1/models/[^/]+:\w+|/v2|/v2/(health|models|repository)(/.*)?"
)
_TYPES = {
    HTTPStatus.BAD_REQUEST: "BadRequestError",
    HTTPStatus.UNAUTHORIZED: "AuthenticationError",
    HTTPStatus.NOT_FOUND: "NotFoundError",
    HTTPStatus.TOO_MANY_REQUESTS: "RateLimitError",
    HTTPStatus.INTERNAL_SERVER_ERROR: "InternalServerError",
    HTTPStatus.NOT_IMPLEMENTED: "NotImplementedError",
    HTTPStatus.SERVICE_UNAVAILABLE: "ServiceUnavailableError",
}


def is_openai(path: str, prefix: str = PREFIX) -> bool:
    """Whether a path belongs to the OpenAI routes, whose errors have OpenAI's shape."""
    if prefix:
        return path == prefix or path.startswith(f"{prefix}/")
    return not _KSERVES.fullmatch(path)


def error(
    path: str,
    status: int,
    message: str,
    *,
    kind: str = "",
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """An error in the shape of the path's protocol.

    Args:
        path: the path of the request, with the prefix.
        status: the HTTP status.
        message: the text for the client.
        kind: OpenAI's ``type``; by default the one that belongs to the status.
        param: OpenAI's ``param``: the field of the request that is wrong.
        headers: headers of the response.
    """
    status = HTTPStatus(status)
    body: object = message
    if is_openai(path):
        kind = kind or _TYPES.get(status, status.phrase)
        body = {"message": message, "type": kind, "param": param, "code": status.value}
    return JSONResponse({"error": body}, status.value, headers)
