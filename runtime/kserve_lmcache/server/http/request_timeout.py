"""The timeout of requests."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kserve_lmcache.server.http import error_responses


class RequestTimeout:
    """Ends a request after a number of seconds.

    The route sees a disconnected client, which ends the request in the engine. The client gets an
    error.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app = app
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        over = asyncio.Event()
        timer = asyncio.get_running_loop().call_later(self.seconds, over.set)
        started: list[Message] = []
        finished = False

        async def receive_in_time() -> Message:
            waiting = asyncio.ensure_future(receive())
            late = asyncio.ensure_future(over.wait())
            try:
                await asyncio.wait({waiting, late}, return_when=asyncio.FIRST_COMPLETED)
                return await waiting if waiting.done() else {"type": "http.disconnect"}
            finally:
                waiting.cancel()
                late.cancel()

        async def send_in_time(message: Message) -> None:
            nonlocal finished
            if over.is_set():
                return
            if message["type"] == "http.response.start":
                started.append(message)
            finished = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        try:
            await self.app(scope, receive_in_time, send_in_time)
        except Exception:
            # Errors of the route after the timeout concern nobody.
            if not over.is_set():
                raise
        finally:
            timer.cancel()
        if over.is_set() and not finished:
            await self._send_error(scope, receive, send, started)

    async def _send_error(
        self, scope: Scope, receive: Receive, send: Send, started: list[Message]
    ) -> None:
        message = f"The request took longer than {self.seconds:g} seconds"
        response = error_responses.error(
            scope["path"], HTTPStatus.GATEWAY_TIMEOUT, message, kind="TimeoutError"
        )
        if not started:
            await response(scope, receive, send)
            return
        event = f"data: {json.dumps(json.loads(bytes(response.body)))}\n\n".encode()
        await send({"type": "http.response.body", "body": event, "more_body": False})
