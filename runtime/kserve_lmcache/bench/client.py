"""One streamed request to an OpenAI-compatible endpoint, and the times of its pieces."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import aiohttp

from kserve_lmcache.bench import prompts
from kserve_lmcache.bench.prompts import Prompt, Segment
from kserve_lmcache.errors import KServeLMCacheError
from kserve_lmcache.redaction import redact_urls

COMPLETIONS, CHAT = "completions", "chat"
_ROUTES = {COMPLETIONS: "/completions", CHAT: "/chat/completions"}
# Where servers have their OpenAI API: KServe's, and everybody else's.
_PREFIXES = ("/openai/v1", "/v1")
# An error is for a line of a table.
_ERROR_LENGTH = 300


class EndpointError(KServeLMCacheError):
    """An endpoint cannot be measured: it does not answer, or not as the OpenAI API does."""


@dataclass(frozen=True)
class Answer:
    """What came of one request; the times are seconds after it was sent.

    Attributes:
        e2e: until the last token, or the error.
        ttft: until the first token.
        gaps: between the pieces.
        usage: by the endpoint, as it came.
        error: in one line.
    """

    e2e: float
    ttft: float | None = None
    gaps: list[float] = field(default_factory=list)
    usage: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def cached_tokens(self) -> int | None:
        """Prompt tokens that came from a cache; ``None`` where the endpoint does not say."""
        details = self.usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else None
        return cached if isinstance(cached, int) else None


class Client:
    """Asks one replica of an endpoint.

    Args:
        session: of aiohttp.
        url: of the OpenAI API, as ``http://127.0.0.1:8080/openai/v1``.
        model: its name there.
        api: ``completions`` or ``chat``.
        stream: whether tokens are to come one by one.
        timeout: seconds after which a request that does not go on is an error.
        extra: of each request's body, for example ``{"cache_salt": …}``.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        model: str,
        api: str = COMPLETIONS,
        stream: bool = True,
        timeout: float = 600.0,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.url = url
        self.model = model
        self.api = api
        self.stream = stream
        self.token_ids = api == COMPLETIONS
        self.words_per_token = 1.0
        self._session = session
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)
        self._extra = dict(extra or {})

    def body(self, prompt: Prompt, salt: str, output_tokens: int) -> dict[str, Any]:
        """What is sent for a prompt."""
        text: str | list[int]
        if self.token_ids:
            text = prompts.token_ids(prompt, salt)
        else:
            text = prompts.words(prompt, salt, self.words_per_token)
        asked = (
            {"messages": [{"role": "user", "content": text}]}
            if self.api == CHAT
            else {"prompt": text}
        )
        body: dict[str, Any] = {
            "model": self.model,
            **asked,
            "max_tokens": output_tokens,
            "temperature": 0,
            # Answers of one length, so that all are asked for the same work; vLLM's own field.
            "ignore_eos": True,
            **self._extra,
        }
        if self.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body

    async def ask(self, body: Mapping[str, Any]) -> Answer:
        """Send one request; no error is raised but a cancellation, the answer has it."""
        data = json.dumps(body).encode()
        times: list[float] = []
        usage: Mapping[str, Any] = {}
        finished = False
        start = time.perf_counter()
        try:
            async with self._session.post(
                self.url + _ROUTES[self.api],
                data=data,
                headers={"Content-Type": "application/json"},
                timeout=self._timeout,
            ) as response:
                if response.status != 200:
                    text = (await response.text(errors="replace"))[:_ERROR_LENGTH]
                    return self._failed(start, f"HTTP {response.status}: {text}", times)
                if not self.stream:
                    whole = await response.json(content_type=None)
                    return Answer(time.perf_counter() - start, usage=whole.get("usage") or {})
                async for event in _events(response):
                    now = time.perf_counter() - start
                    if event.get("error"):
                        return self._failed(start, json.dumps(event["error"]), times)
                    usage = event.get("usage") or usage
                    choice = next(iter(event.get("choices") or ()), None)
                    if choice is not None:
                        finished = finished or choice.get("finish_reason") is not None
                        if _bears_token(choice):
                            times.append(now)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
            return self._failed(start, f"{type(error).__name__}: {error}", times)
        if not times:
            return self._failed(start, "the answer has no token", times)
        if not finished:
            return self._failed(start, "the answer ends without a reason", times)
        return _answer(times, usage)

    async def prepare(self) -> None:
        """Find out whether prompts may be token ids, else how many words make a token.

        Raises:
            EndpointError: the endpoint refuses both.
        """
        if self.token_ids:
            probe = await self.ask(self.body([Segment("probe", 8)], "probe", 1))
            if probe.error is None:
                return
            self.token_ids = False
        counts: list[int] = []
        for tokens in (64, 192):
            probe = await self.ask(self.body([Segment("probe", tokens)], "probe", 1))
            if probe.error is not None:
                raise EndpointError(f"{redact_urls(self.url)} refuses a request: {probe.error}")
            counts.append(probe.usage.get("prompt_tokens") or 0)
        if counts[1] > counts[0] > 0:
            # Two lengths, so that what a chat template adds does not count.
            self.words_per_token = (192 - 64) / (counts[1] - counts[0])

    def _failed(self, start: float, error: str, times: list[float]) -> Answer:
        line = " ".join(redact_urls(error).split())[:_ERROR_LENGTH]
        return Answer(time.perf_counter() - start, times[0] if times else None, error=line)


def _answer(times: list[float], usage: Mapping[str, Any]) -> Answer:
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    return Answer(times[-1], times[0], gaps, usage)


def _bears_token(choice: Mapping[str, Any]) -> bool:
    """Whether a piece of a stream is a step of decoding.

    The text of one may be empty, while a character is not whole yet; but an empty text in front
    (a chat's role) or at the end (a reason alone) is none.
    """
    delta = choice.get("delta") or {}
    text = choice.get("text") or delta.get("content") or delta.get("reasoning_content")
    text = text or delta.get("reasoning")
    return bool(text) or ("role" not in delta and choice.get("finish_reason") is None)


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The objects of a stream of server-sent events.

    Raises:
        ValueError: one is not a JSON object.
    """
    rest = b""
    async for piece in response.content.iter_any():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue  # an empty line, a comment or another field
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            event = json.loads(data)
            if not isinstance(event, dict):
                raise ValueError("an event is not a JSON object")
            yield event


async def find_api(session: aiohttp.ClientSession, url: str) -> tuple[str, list[str]]:
    """The OpenAI API's address under ``url``, and the names of its models.

    Raises:
        EndpointError: there is none.
    """
    url = url.rstrip("/")
    candidates = [url] if urlsplit(url).path else [url + prefix for prefix in _PREFIXES]
    tried = []
    for candidate in candidates:
        try:
            timeout = aiohttp.ClientTimeout(total=10)
            async with session.get(f"{candidate}/models", timeout=timeout) as response:
                if response.status != 200:
                    tried.append(f"{candidate}/models answers {response.status}")
                    continue
                listed = await response.json(content_type=None)
                return candidate, [model["id"] for model in listed["data"]]
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            tried.append(f"{candidate}/models: {error or type(error).__name__}")
        except (ValueError, KeyError, TypeError) as error:
            tried.append(f"{candidate}/models is no list of models: {error!r}")
    raise EndpointError(redact_urls(f"{url} cannot be measured. " + "; ".join(tried)))


def metrics_url(url: str) -> str:
    """Where a server whose API is at ``url`` has its metrics."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, "/metrics", "", ""))
