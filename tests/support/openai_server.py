"""A small OpenAI-compatible server with answers and delays that a test chooses.

It stands for an endpoint in tests of the client that measures one: what a real engine takes for an
answer is not known beforehand. tests/e2e/test_bench.py measures the real server.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import redis
from aiohttp import web


@dataclass
class Script:
    """How the server answers.

    Attributes:
        first: seconds to the first token.
        between: seconds between two tokens.
        takes_token_ids: whether prompts may be lists of numbers.
        broken_every: every so many requests end without a last piece; 0: none.
        per_token: seconds of the first token for each token of a prompt that is not cached.
        store: where prompts are kept for others, 100 bytes a token.
        bodies: of all requests so far, in the order of their coming.
        seen: prompts; one that was seen is cached but for its last token.
        together: the most requests that were under way at a time.
    """

    first: float = 0.02
    between: float = 0.005
    takes_token_ids: bool = True
    broken_every: int = 0
    per_token: float = 0.0
    store: redis.Redis | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    together: int = 0
    _now: int = 0

    def application(self) -> web.Application:
        app = web.Application(client_max_size=2**26)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v2/health/ready", self._models)
        app.router.add_post("/v1/completions", self._answer)
        app.router.add_post("/v1/chat/completions", self._answer)
        return app

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "tiny"}]})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        prompt = body.get("prompt") or body["messages"][0]["content"][0]["text"]
        if isinstance(prompt, list) and not self.takes_token_ids:
            return web.json_response({"error": "a prompt is a text"}, status=400)
        self.bodies.append(body)
        broken = self.broken_every and len(self.bodies) % self.broken_every == 0
        self._now += 1
        self.together = max(self.together, self._now)
        try:
            return await self._stream(request, body, prompt, bool(broken))
        finally:
            self._now -= 1

    async def _stream(
        self, request: web.Request, body: dict[str, Any], prompt: Any, broken: bool
    ) -> web.StreamResponse:
        answer = body.get("max_tokens") or body["max_completion_tokens"]
        tokens, key = len(prompt if isinstance(prompt, list) else prompt.split()), str(prompt)
        cached = key in self.seen or self._is_stored(key, tokens)
        usage = {
            "prompt_tokens": tokens,
            "completion_tokens": answer,
            "prompt_tokens_details": {"cached_tokens": tokens - 1 if cached else 0},
        }
        self.seen.add(key)
        await asyncio.sleep(0.0 if cached else self.per_token * tokens)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        chat = "messages" in body
        for number in range(answer):
            await asyncio.sleep(self.between if number else self.first)
            if chat and not number:  # with the first token, as vLLM does
                role = {"role": "assistant", "content": ""}
                await _send(response, {"choices": [{"delta": role}]})
            last = number + 1 == answer and not broken
            text = {"delta": {"content": "x"}} if chat else {"text": "x"}
            await _send(
                response, {"choices": [{**text, "finish_reason": "length" if last else None}]}
            )
        await _send(response, {"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response

    def _is_stored(self, key: str, tokens: int) -> bool:
        """Whether another replica has stored it; it is now, in any case."""
        if self.store is None:
            return False
        found = self.store.get(key) is not None
        self.store.set(key, bytes(100 * tokens))
        return found


async def _send(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


@contextmanager
def serving(*scripts: Script) -> Iterator[Sequence[str]]:
    """The servers' addresses; they run in a thread of this process."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start(script: Script) -> tuple[web.AppRunner, str]:
        runner = web.AppRunner(script.application(), handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"

    started = [asyncio.run_coroutine_threadsafe(start(each), loop).result(10) for each in scripts]
    try:
        yield [url for _, url in started]
    finally:
        for runner, _ in started:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(70)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def serve_replica(flags: Sequence[str], store_url: str) -> None:
    """Be a replica until SIGTERM: see ``stand_in_replica/sitecustomize.py``."""
    store = redis.Redis.from_url(store_url) if store_url else None
    (port,) = (flag.partition("=")[2] for flag in flags if flag.startswith("--http_port="))
    script = Script(first=0.002, between=0.001, per_token=1e-4, store=store)
    web.run_app(script.application(), host="127.0.0.1", port=int(port), print=None)
