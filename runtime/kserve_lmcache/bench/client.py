"""Endpoints, and one streamed request at a time to a replica of one.

Standard library alone, without proxies: a request is timed on a connection that is already open.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from kserve_lmcache.bench.records import BenchmarkError
from kserve_lmcache.errors import UsageError
from kserve_lmcache.redaction import redact_urls

# The paths of the OpenAI API: KServe's, and everybody else's.
_PREFIXES = ("/openai/v1", "/v1")
_ANSWER_SECONDS, _LIST_SECONDS = 600.0, 10.0  # without a byte


class Replica:
    """One server.

    Args:
        url: of the server, or of its OpenAI API if that has another path.
        api_key: sent as a bearer token, if there is one.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        self.api, self.model, self.root = url.rstrip("/"), "", ""
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._headers["Content-Type"] = "application/json"

    def connect(self, model: str | None) -> None:
        """Find the OpenAI API and the model; without a name, the first model."""
        url, tried = self.api, []
        for self.api in [url] if urlsplit(url).path else [url + each for each in _PREFIXES]:
            try:
                with self._sent("/models") as (response, _):
                    roots = {m["id"]: m.get("root") for m in json.loads(response.read())["data"]}
                self.model = model or next(iter(roots))
                self.root = roots[self.model] or self.model
                return
            except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
                tried.append(f"{self.api}/models: {error or type(error).__name__}")
        raise BenchmarkError(redact_urls(f"{url} cannot be measured. " + "; ".join(tried)))

    def ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send a streamed request for a completion.

        Returns:
            Fields of a :class:`~kserve_lmcache.bench.records.Record`. An error is one of them.
        """
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        data = json.dumps({**body, "model": self.model, **stream})
        times: list[float] = []
        usage: dict[str, Any] = {}
        finished, error, start = False, None, time.perf_counter()
        try:
            with self._sent("/completions", data) as (response, start):
                for line in response:
                    if not line.startswith(b"data:") or line[5:].strip() == b"[DONE]":
                        continue
                    event = json.loads(line[5:])
                    if event.get("error"):
                        raise OSError(json.dumps(event["error"]))
                    usage = event.get("usage") or usage
                    for choice in event.get("choices") or ():
                        ends = choice.get("finish_reason") is not None
                        finished = finished or ends
                        # The text of a step is empty while a character is incomplete.
                        if choice.get("text") or not ends:
                            times.append(time.perf_counter() - start)
            if not (times and finished):
                raise OSError("the answer has no token, or ends without a reason")
        except (OSError, HTTPException, ValueError, AttributeError) as failure:
            times.append(time.perf_counter() - start)
            error = one_line(str(failure) or type(failure).__name__)
        return {
            "e2e": times[-1],
            "ttft": times[0] if error is None else None,
            "prompt_tokens": usage.get("prompt_tokens"),
            "output_tokens": usage.get("completion_tokens"),
            "cached_tokens": (usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
            "error": error,
        }

    @contextmanager
    def _sent(self, path: str, body: str | None = None) -> Iterator[tuple[HTTPResponse, float]]:
        """The response, and the time at which the request was sent."""
        parts = urlsplit(self.api)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        timeout, method = (_ANSWER_SECONDS, "POST") if body else (_LIST_SECONDS, "GET")
        # A connection for each request: servers close idle ones.
        connection = kind(parts.hostname or "", parts.port, timeout=timeout)
        try:
            connection.connect()
            start = time.perf_counter()
            connection.request(method, parts.path + path, body, self._headers)
            response = connection.getresponse()
            if response.status != 200:
                raise OSError(f"HTTP {response.status}: {response.read().decode(errors='replace')}")
            yield response, start
        finally:
            connection.close()


@dataclass(frozen=True)
class Endpoint:
    """What is measured: one server, or several replicas that share a store."""

    label: str
    replicas: Sequence[Replica]


def parse(text: str, api_key: str | None) -> Endpoint:
    """An endpoint from ``[LABEL=]URL[,URL…]``."""
    label, separator, rest = text.partition("=")
    label, rest = (label, rest) if separator and "://" not in label else ("", text)
    urls = [url.strip() for url in rest.split(",") if url.strip()]
    if not urls or not all(url.startswith(("http://", "https://")) for url in urls):
        raise UsageError(f"{redact_urls(text)!r} is not [LABEL=]http://HOST:PORT[,http://…]")
    label = label or redact_urls(urls[0]).partition("://")[2]
    return Endpoint(label, [Replica(url, api_key) for url in urls])


def one_line(error: str) -> str:
    """An error for a line of a table."""
    return " ".join(redact_urls(error).split())[:300]
