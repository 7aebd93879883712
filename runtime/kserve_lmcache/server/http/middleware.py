"""What every request passes on its way to a route, from the outside in (:func:`install`)."""

from __future__ import annotations

import asyncio
import contextlib
import re
import uuid
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kserve_lmcache.compat.vllm import AuthenticationMiddleware
from kserve_lmcache.engine.tenant import TENANT
from kserve_lmcache.logs import REQUEST_ID
from kserve_lmcache.server.http import error_responses, errors, request_rules
from kserve_lmcache.server.http.limits import Limits
from kserve_lmcache.server.http.request_timeout import TimeOut
from kserve_lmcache.server.lifecycle import Lifecycle

_HEADER = "x-request-id"
_GOOD_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
# Asked by probes and scrapers, which have no key.
_PUBLIC = re.compile(r"/|/metrics|/v2/health/(live|ready)|/v2/models/[^/]+/ready|/v1/models/[^/:]+")
_PUBLIC_BELOW_PREFIX = re.compile(r"/health|/ping|/version")
_DISCARD_SECONDS = 5.0
_WITH_BODY = {"POST", "PUT", "PATCH", "DELETE"}


def install(app: FastAPI, limits: Limits, lifecycle: Lifecycle) -> None:
    """Put all of it in front of an application; what is added last is met first."""
    app.add_middleware(UnexpectedErrors)
    app.add_middleware(Bodies, limits=limits)
    app.add_middleware(Admission, limits=limits, lifecycle=lifecycle)
    if limits.api_keys:
        app.add_middleware(ApiKeys, tokens=list(limits.api_keys))
    app.add_middleware(HeaderLimits, limits=limits)
    if limits.cors:
        app.add_middleware(CORSMiddleware, **limits.cors)
    app.add_middleware(RequestIds)


def is_inference(scope: Scope) -> bool:
    """Whether a request asks a model for something, rather than about the server."""
    if scope["type"] == "websocket":
        return True
    return scope["type"] == "http" and str(scope["method"]) == "POST"


async def refuse(scope: Scope, receive: Receive, send: Send, response: Response) -> None:
    """End a request; a WebSocket is closed before it is accepted, which clients see as 403."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": ""})
    else:
        await response(scope, receive, send)


class UnexpectedErrors:
    """Answers what no handler knows with 500.

    Starlette would answer and raise it once more, for which the HTTP server closes the connection.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        sent: set[str] = set()

        async def watch(message: Message) -> None:
            await send(message)
            last = message["type"] == "http.response.body" and not message.get("more_body")
            sent.add("end" if last else message["type"])

        try:
            await self.app(scope, receive, watch)
        except Exception as error:
            if "end" in sent:  # by vLLM's application
                return
            if sent or scope["type"] != "http":
                raise
            await errors.answer(scope["path"], error)(scope, receive, send)


class RequestIds:
    """Every request has an ``X-Request-Id``, which vLLM's log and the response carry too."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = MutableHeaders(raw=list(scope["headers"]))
        given = headers.get(_HEADER, "")
        # Any other would break a line of the log, or be one.
        identity = given if _GOOD_REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        headers[_HEADER] = identity
        REQUEST_ID.set(identity)

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[_HEADER] = identity
            await send(message)

        await self.app({**scope, "headers": headers.raw}, receive, with_id)


class HeaderLimits:
    """431 for more header fields, or bytes of them, than the limits of ``vllm serve``."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        headers = scope.get("headers", ())
        size = sum(len(name) + len(value) for name, value in headers)
        if len(headers) <= self.limits.header_count and size <= self.limits.header_bytes:
            await self.app(scope, receive, send)
            return
        message = (
            f"{len(headers)} header fields of {size} bytes are more than "
            f"{self.limits.header_count} of {self.limits.header_bytes}"
        )
        status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        await refuse(scope, receive, send, error_responses.error(scope["path"], status, message))


class ApiKeys(AuthenticationMiddleware):  # type: ignore[misc]
    """vLLM's check of the bearer token, in constant time, on all but health and metrics."""

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Pass a request on, or answer it."""
        method = scope.get("method", "")
        free = scope["type"] not in ("http", "websocket") or method == "OPTIONS"
        if free or is_public(method, scope["path"]) or self.verify_token(Headers(scope=scope)):
            allowed: Awaitable[None] = self.app(scope, receive, send)
            return allowed
        response = error_responses.error(
            scope["path"],
            HTTPStatus.UNAUTHORIZED,
            "This server wants an API key: Authorization: Bearer KEY",
            headers={"WWW-Authenticate": "Bearer"},
        )
        return refuse(scope, receive, send, response)


def is_public(method: str, path: str) -> bool:
    """Whether a request is a probe or a scrape, which needs no API key."""
    prefix = error_responses.PREFIX
    if method not in ("GET", "HEAD"):
        return False
    if error_responses.is_openai(path) and path.startswith(prefix):
        return bool(_PUBLIC_BELOW_PREFIX.fullmatch(path.removeprefix(prefix)))
    return bool(_PUBLIC.fullmatch(path))


class Admission:
    """Refuses what cannot be answered now, ends what takes too long, counts what is answered."""

    def __init__(self, app: ASGIApp, limits: Limits, lifecycle: Lifecycle) -> None:
        self.app = app
        self.limits = limits
        self.lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if not is_inference(scope):
            await self.app(scope, receive, send)
            return
        if (response := self._refusal(scope["path"])) is not None:
            await refuse(scope, receive, send, response)
            return
        self.lifecycle.active += 1
        try:
            if self.limits.request_seconds is None or scope["type"] == "websocket":
                await self.app(scope, receive, send)
            else:
                await TimeOut(self.app, self.limits.request_seconds)(scope, receive, send)
        finally:
            self.lifecycle.active -= 1

    def _refusal(self, path: str) -> Response | None:
        state = self.lifecycle
        if not state.takes_requests:
            headers = {**error_responses.RETRY_AFTER, "Connection": "close"}
            message = f"The server takes no requests: {state.reason}"
            return error_responses.error(
                path, HTTPStatus.SERVICE_UNAVAILABLE, message, headers=headers
            )
        most = self.limits.concurrent_requests
        if most is not None and state.active >= most:
            message = f"{state.active} requests are being answered, and no more than {most} may be"
            status = HTTPStatus.TOO_MANY_REQUESTS
            return error_responses.error(path, status, message, headers=error_responses.RETRY_AFTER)
        return None


class Bodies:
    """Reads a body, up to its limit, and holds it against the rules about the cache."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if self.limits.tenant_header and scope["type"] in ("http", "websocket"):
            TENANT.set(Headers(scope=scope).get(self.limits.tenant_header, ""))
        if scope["type"] != "http" or scope["method"] not in _WITH_BODY:
            await self.app(scope, receive, send)
            return
        body = await self._read(scope, receive)
        if body is None:
            message = f"The body is larger than {self.limits.body_bytes} bytes"
            status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            await _discard(scope, receive)
            # What is left of the body would be taken for the next request.
            response = error_responses.error(
                scope["path"], status, message, headers={"Connection": "close"}
            )
            await response(scope, receive, send)
            return
        if self.limits.offloads() and (reason := request_rules.refusal(body)):
            response = error_responses.error(scope["path"], HTTPStatus.BAD_REQUEST, reason)
            await response(scope, receive, send)
            return
        await self.app(scope, _again(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body; ``None`` when it is larger than allowed."""
        length = Headers(scope=scope).get("content-length", "")
        if length.isdigit() and int(length) > self.limits.body_bytes:
            return None
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return b"".join(parts)  # the client is gone: the route will notice
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.limits.body_bytes:
                return None
            if not message.get("more_body"):
                return b"".join(parts)


async def _discard(scope: Scope, receive: Receive) -> None:
    """Let a client finish sending, for a while: one that is cut off does not read the answer."""
    if "expect" in Headers(scope=scope):  # it has not begun
        return

    async def to_the_end() -> None:
        while (message := await receive())["type"] == "http.request" and message.get("more_body"):
            pass

    with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
        await asyncio.wait_for(to_the_end(), _DISCARD_SECONDS)


def _again(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """A ``receive`` that gives the body first, whole."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def once_more() -> Message:
        return first.pop() if first else await receive()

    return once_more
