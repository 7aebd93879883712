"""Errors of a request that vLLM finds only when it prepares it (a prompt that is too long, …).

vLLM 0.24 returns most of them, 0.28 raises them. KServe would answer 500 to what is raised.
"""

from __future__ import annotations

from http import HTTPStatus

import vllm.exceptions
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from kserve.protocol.rest.openai.errors import create_error_response

# vLLM's own server answers 400 to the same ones.
_CLIENT_ERRORS: tuple[type[Exception], ...] = (
    *filter(None, (getattr(vllm.exceptions, "VLLMClientError", None),)),
    ValueError,
    TypeError,
    OverflowError,
)


def register(app: FastAPI) -> None:
    """Answer them with 400 and an OpenAI error body."""
    for error in _CLIENT_ERRORS:
        app.add_exception_handler(error, _bad_request)


async def _bad_request(request: Request, error: Exception) -> JSONResponse:
    # Its str() repeats the rejected value, which may be a whole prompt.
    message = str(error.args[0]) if error.args else type(error).__name__
    body = create_error_response(message, param=getattr(error, "parameter", None) or "")
    return JSONResponse(body.model_dump(), status_code=HTTPStatus.BAD_REQUEST)
