"""Spans of what offloading does for a request, in the trace that the request came with.

vLLM gives its processes an exporter where ``--otlp-traces-endpoint`` is set, and only then do
requests carry the headers of their trace; without them nothing here does anything.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from vllm.tracing import extract_trace_context, instrument_manual

if TYPE_CHECKING:
    from vllm.v1.request import Request

PREFIX = "kserve_lmcache."
Headers = Mapping[str, str]  # W3C Trace Context: traceparent, tracestate


def span(name: str, headers: Headers | None, began: float, **attributes: int) -> None:
    """Export what began at ``began`` (of ``time.monotonic``) and ends now, if it is traced."""
    if headers:
        end = time.time_ns()
        instrument_manual(
            PREFIX + name,
            end - int((time.monotonic() - began) * 1e9),
            end,
            {PREFIX + key: value for key, value in attributes.items()},
            extract_trace_context(headers),
        )


class Traces:
    """The headers of requests that the scheduler knows and that are traced."""

    def __init__(self) -> None:
        self._headers: dict[str, Headers] = {}
        self._looked_up: set[str] = set()

    def meet(self, request: Request) -> None:
        """The scheduler asks about a request, perhaps again."""
        if request.trace_headers:
            self._headers[request.request_id] = request.trace_headers

    def looked_up(self, request_id: str, began: float, **attributes: int) -> None:
        """A lookup has ended; one that waits for blocks is looked up in every step, and told once.

        Args:
            request_id: the request's.
            began: of ``time.monotonic``.
            attributes: of the span.
        """
        if request_id in self._headers and request_id not in self._looked_up:
            self._looked_up.add(request_id)
            span("lookup", self._headers[request_id], began, **attributes)

    def of(self, request_ids: Iterable[str]) -> dict[str, Headers]:
        """The headers of those requests that are traced."""
        if not self._headers:
            return {}
        return {name: self._headers[name] for name in request_ids if name in self._headers}

    def forget(self, request_id: str) -> None:
        """A request is finished."""
        self._headers.pop(request_id, None)
        self._looked_up.discard(request_id)
