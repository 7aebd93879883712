"""Turns exceptions of routes into error responses.

vLLM raises an exception for a request that cannot be served, such as a prompt that is too long
(0.28 and 0.32), or returns most such errors (0.24). KServe answers 500 to an exception of vLLM's.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from kserve.errors import ModelNotFound, ModelNotReady, ServerNotLive, ServerNotReady
from starlette.exceptions import HTTPException
from starlette.responses import Response
from vllm.v1.engine.exceptions import EngineDeadError

from kserve_lmcache.compat import vllm
from kserve_lmcache.engine.errors import RefusedError
from kserve_lmcache.server.http import error_responses

logger = logging.getLogger(__name__)

Handler = Callable[[Request, Any], Awaitable[Response]]


_FIELD = re.compile(r"[a-z_][a-z0-9_]*|\d+")
_BRANCHES = {"str", "int", "float", "bool", "bytes", "list", "dict", "tuple", "none", "nullable"}
# The first row that fits decides. The last row is that of vLLM's own server.
_STATUS: tuple[tuple[tuple[type[Exception], ...], HTTPStatus], ...] = (
    ((EngineDeadError,), HTTPStatus.SERVICE_UNAVAILABLE),
    ((ModelNotReady, ServerNotReady, ServerNotLive), HTTPStatus.SERVICE_UNAVAILABLE),
    (vllm.exceptions("RetryableRequestError"), HTTPStatus.SERVICE_UNAVAILABLE),
    ((ModelNotFound, *vllm.exceptions("VLLMNotFoundError")), HTTPStatus.NOT_FOUND),
    (vllm.exceptions("VLLMUnprocessableEntityError"), HTTPStatus.UNPROCESSABLE_ENTITY),
    ((NotImplementedError,), HTTPStatus.NOT_IMPLEMENTED),
    (
        (*vllm.exceptions("VLLMClientError"), ValueError, TypeError, OverflowError),
        HTTPStatus.BAD_REQUEST,
    ),
)
# These carry their status, such as 503 for a queue that is full (``--max-num-queued-reqs``).
_WITH_STATUS = vllm.exceptions("GracefulHTTPError")


def register(app: FastAPI) -> None:
    """Install handlers that answer every exception in the shape of the path's protocol.

    On KServe's routes, KServe's own handlers stay in place.
    """
    before = dict(app.exception_handlers)
    ours = {kind for kinds, _ in _STATUS for kind in kinds} | set(_WITH_STATUS)
    for kind in {*before, *ours, RefusedError, HTTPException, RequestValidationError, Exception}:
        app.add_exception_handler(kind, _by_protocol(before.get(kind)))


def _by_protocol(kserves: Any) -> Handler:
    async def handle(request: Request, error: Exception) -> Response:
        if kserves is None or error_responses.is_openai(request.scope["path"]):
            return answer(request.scope["path"], error)
        response: Response = await kserves(request, error)
        return response

    return handle


def answer(path: str, error: Exception) -> JSONResponse:
    """The response to an exception."""
    if isinstance(error, RefusedError):
        return error_responses.error(
            path, error.status, error.message, kind=error.kind, param=error.param
        )
    if isinstance(error, HTTPException):
        return error_responses.error(
            path, error.status_code, str(error.detail), headers=error.headers
        )
    if isinstance(error, RequestValidationError):
        return _invalid(path, error)
    own: Any = getattr(error, "http_status", None)
    for kinds, status in ((_WITH_STATUS, own), *_STATUS):
        if isinstance(error, kinds):
            again = (
                error_responses.RETRY_AFTER if status == HTTPStatus.SERVICE_UNAVAILABLE else None
            )
            param = "model" if status == HTTPStatus.NOT_FOUND else getattr(error, "parameter", None)
            return error_responses.error(path, status, _message(error), param=param, headers=again)
    logger.error("%s on %s", type(error).__name__, path, exc_info=error)
    message = f"Internal error ({type(error).__name__}); the server's log has more"
    return error_responses.error(path, HTTPStatus.INTERNAL_SERVER_ERROR, message)


def _message(error: Exception) -> str:
    if isinstance(error, ModelNotFound | EngineDeadError):
        return str(error)
    # The text of vLLM's validation errors repeats the rejected value, which may be a whole prompt.
    return str(error.args[0]) if error.args else str(error) or type(error).__name__


def _is_field(part: str) -> bool:
    """Whether a part of an error's location is a field, and not a type that pydantic has tried."""
    return _FIELD.fullmatch(part) is not None and part not in _BRANCHES


def _invalid(path: str, error: RequestValidationError) -> JSONResponse:
    """The response that lists each mistake with its field, without values, which may be prompts."""
    lines, param = [], None
    for mistake in error.errors():
        if not isinstance(mistake, dict):  # vLLM raises some of these errors with texts
            lines.append(str(mistake))
            continue
        place = ".".join(filter(_is_field, map(str, mistake.get("loc", ())[1:])))
        if mistake.get("type") == "json_invalid":
            reason = mistake.get("ctx", {}).get("error", "")
            lines.append(f"the body is not valid JSON at character {place}: {reason}")
            continue
        cause = mistake.get("ctx", {}).get("error")
        param = param or getattr(cause, "parameter", None) or place or None
        said = str(cause.args[0]) if isinstance(cause, Exception) and cause.args else mistake["msg"]
        lines.append(f"{place}: {said}" if place else said)
    return error_responses.error(
        path, HTTPStatus.BAD_REQUEST, "; ".join(dict.fromkeys(lines)), param=param
    )
