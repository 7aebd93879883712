"""The middleware in front of every route (:func:`install`)."""

from __future__ import annotations

import asyncio
import contextlib
import re
import uuid
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kserve_lmcache.compat.vllm import AuthenticationMiddleware
from kserve_lmcache.engine.tenant import TENANT
from kserve_lmcache.logs import IS_PROBE, REQUEST_ID
from kserve_lmcache.server.http import error_responses, errors, request_rules
from kserve_lmcache.server.http.limits import Limits
from kserve_lmcache.server.http.request_timeout import RequestTimeout
from kserve_lmcache.server.lifecycle import Lifecycle

_HEADER = "x-request-id"
_GOOD_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
# Routes of probes and scrapers, which have no API key.
_PUBLIC = re.compile(r"/|/metrics|/v2/health/(live|ready)|/v2/models/[^/]+/ready|/v1/models/[^/:]+")
_PUBLIC_BELOW_PREFIX = re.compile(r"/health|/ping|/version")
_ANTHROPIC = re.compile(r"/v1/messages(/.*)?")
_STATUS_PAGE = "/offload"  # the page in a browser asks for it every few seconds
_DISCARD_SECONDS = 5.0
_WITH_BODY = {"POST", "PUT", "PATCH", "DELETE"}


def install(app: FastAPI, limits: Limits, lifecycle: Lifecycle) -> None:
    """Install the middleware. The one added last runs first."""
    app.add_middleware(UnexpectedErrors)
    # Behind the bodies: a client that sends slowly takes no place of a request that runs.
    app.add_middleware(Admission, limits=limits, lifecycle=lifecycle)
    app.add_middleware(Bodies, limits=limits)
    app.add_middleware(Tenants, limits=limits)
    if limits.api_keys:
        app.add_middleware(ApiKeys, tokens=list(limits.api_keys))
    app.add_middleware(HeaderLimits, limits=limits)
    if limits.cors:
        app.add_middleware(CORSMiddleware, **limits.cors)
    app.add_middleware(Farewell, lifecycle=lifecycle)
    app.add_middleware(RequestIds)


def is_inference(scope: Scope) -> bool:
    """Whether a request asks for inference."""
    if scope["type"] == "websocket":
        return True
    return scope["type"] == "http" and str(scope["method"]) == "POST"


async def refuse(scope: Scope, receive: Receive, send: Send, response: Response) -> None:
    """Send a refusal. A WebSocket is closed before it is accepted, which clients see as 403."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": ""})
    else:
        await response(scope, receive, send)


class UnexpectedErrors:
    """Answers exceptions that no handler takes with 500.

    Starlette answers such an exception and raises it again; the HTTP server then closes the
    connection.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        sent: set[str] = set()

        async def watch(message: Message) -> None:
            await send(message)
            last = message["type"] == "http.response.body" and not message.get("more_body")
            sent.add("end" if last else message["type"])

        try:
            await self.app(scope, receive, watch)
        except Exception as error:
            if "end" in sent:  # vLLM's application has answered
                return
            if sent or scope["type"] != "http":
                raise
            await errors.answer(scope["path"], error)(scope, receive, send)


class RequestIds:
    """Gives every request an ``X-Request-Id``, which is in vLLM's log and in the response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = MutableHeaders(raw=list(scope["headers"]))
        given = headers.get(_HEADER, "")
        # Other characters could break a line of the log.
        identity = given if _GOOD_REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        headers[_HEADER] = identity
        REQUEST_ID.set(identity)
        IS_PROBE.set(is_probe(scope.get("method", ""), scope["path"]))

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[_HEADER] = identity
            await send(message)

        await self.app({**scope, "headers": headers.raw}, receive, with_id)


class Farewell:
    """Closes the connections of a server that is leaving, each with its next response.

    A balancer takes the server out for new connections alone. A client that keeps a connection open
    would send its next request to this server until the port is closed.
    """

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self.app = app
        self.lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""

        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start" and self.lifecycle.is_leaving:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self.app(scope, receive, closing if scope["type"] == "http" else send)


class HeaderLimits:
    """Answers 431 to a request whose header fields are too many or too large."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
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
    """Checks the bearer token, by vLLM's comparison in constant time, except for probes."""

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Pass the request on, or answer it."""
        method = scope.get("method", "")
        free = scope["type"] not in ("http", "websocket") or method == "OPTIONS"
        if free or is_public(method, scope["path"]) or self._has_key(scope):
            allowed: Awaitable[None] = self.app(scope, receive, send)
            return allowed
        response = error_responses.error(
            scope["path"],
            HTTPStatus.UNAUTHORIZED,
            "This server wants an API key: Authorization: Bearer KEY",
            headers={"WWW-Authenticate": "Bearer"},
        )
        return refuse(scope, receive, send, response)

    def _has_key(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        if self.verify_token(headers):
            return True
        path = str(scope["path"]).removeprefix(error_responses.PREFIX)
        if not _ANTHROPIC.fullmatch(path):
            return False
        # Clients of Anthropic's protocol send the key so. A header may come twice.
        return any(
            self.verify_token(Headers({"Authorization": f"Bearer {key}"}))
            for key in headers.getlist("x-api-key")
        )


def is_public(method: str, path: str) -> bool:
    """Whether a request is a probe or a scrape, which needs no API key."""
    prefix = error_responses.PREFIX
    if method not in ("GET", "HEAD"):
        return False
    if error_responses.is_openai(path) and path.startswith(prefix):
        return bool(_PUBLIC_BELOW_PREFIX.fullmatch(path.removeprefix(prefix)))
    return bool(_PUBLIC.fullmatch(path))


def is_probe(method: str, path: str) -> bool:
    """Whether a request comes every few seconds by itself: a probe, a scrape, the status page's."""
    return is_public(method, path) or path == _STATUS_PAGE


class Admission:
    """Refuses requests that cannot be served now, times requests out, and counts active ones."""

    def __init__(self, app: ASGIApp, limits: Limits, lifecycle: Lifecycle) -> None:
        self.app = app
        self.limits = limits
        self.lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
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
                await RequestTimeout(self.app, self.limits.request_seconds)(scope, receive, send)
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
            message = f"{state.active} requests are active, and no more than {most} may be"
            status = HTTPStatus.TOO_MANY_REQUESTS
            return error_responses.error(path, status, message, headers=error_responses.RETRY_AFTER)
        return None


class Tenants:
    """Takes the tenant from the request's header, and refuses requests whose tenant is unclear."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        name = self.limits.tenant_header
        if name is None or scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).getlist(name)
        if reason := self._refusal(given, is_inference(scope)):
            response = error_responses.error(scope["path"], HTTPStatus.BAD_REQUEST, reason)
            await refuse(scope, receive, send, response)
            return
        # Starlette reads bytes; a name of a tenant is text, as in a body or a router.
        tenant = given[0].encode("latin-1").decode("utf-8", "surrogateescape") if given else ""
        TENANT.set(tenant)
        await self.app(scope, receive, send)

    def _refusal(self, given: Sequence[str], infers: bool) -> str:
        name = self.limits.tenant_header
        if len(given) > 1:
            # One of them is the gateway's, and nobody knows which.
            return f"the request has the header {name} {len(given)} times, and must have it once"
        if self.limits.tenant_required and infers and not any(given):
            return f"the request has no header {name}, which names its tenant"
        return ""


class Bodies:
    """Reads the body up to its largest size and its time, and applies the rules for its content."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] != "http" or scope["method"] not in _WITH_BODY:
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                body = await self._read(scope, receive)
        except TimeoutError:
            message = f"The body took longer than {self.limits.body_seconds:g} seconds"
            await self._close(scope, receive, send, HTTPStatus.REQUEST_TIMEOUT, message)
            return
        if body is None:
            message = f"The body is larger than {self.limits.body_bytes} bytes"
            await _discard(scope, receive)
            await self._close(scope, receive, send, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
            return
        content_type = Headers(scope=scope).get("content-type", "")
        reason = request_rules.refusal_of_encoding(body, content_type)
        if not reason and self.limits.offloads():
            reason = request_rules.refusal(body)
        if reason:
            response = error_responses.error(scope["path"], HTTPStatus.BAD_REQUEST, reason)
            await response(scope, receive, send)
            return
        await self.app(scope, _replay(body, receive), send)

    async def _close(
        self, scope: Scope, receive: Receive, send: Send, status: HTTPStatus, message: str
    ) -> None:
        # The server would take the rest of the body for the next request.
        response = error_responses.error(
            scope["path"], status, message, headers={"Connection": "close"}
        )
        await response(scope, receive, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body; ``None`` when it is too large."""
        length = Headers(scope=scope).get("content-length", "")
        if length.isdigit() and int(length) > self.limits.body_bytes:
            return None
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return b"".join(parts)  # the client has disconnected; the route sees that too
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.limits.body_bytes:
                return None
            if not message.get("more_body"):
                return b"".join(parts)


async def _discard(scope: Scope, receive: Receive) -> None:
    """Read the rest of a body for some seconds: a client reads no response while it sends."""
    if "expect" in Headers(scope=scope):  # the client has not begun to send
        return

    async def read_to_end() -> None:
        while (message := await receive())["type"] == "http.request" and message.get("more_body"):
            pass

    with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
        await asyncio.wait_for(read_to_end(), _DISCARD_SECONDS)


def _replay(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """A ``receive`` whose first message is the whole body."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return first.pop() if first else await receive()

    return replayed
