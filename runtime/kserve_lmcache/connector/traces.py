"""Spans of the lookup, load and save of a request, in the trace that the request belongs to.

VLLM exports spans where ``--otlp-traces-endpoint`` is set, and only then do requests carry the
headers of their trace. Without headers nothing here does anything.
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
    """Export a span that ends now, if its request is traced.

    Args:
        name: the span's name, without our prefix.
        headers: the headers of the request's trace.
        began: the span's beginning, of ``time.monotonic``.
        attributes: the span's attributes, without our prefix.
    """
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
    """The headers of the traced requests in the scheduler."""

    def __init__(self) -> None:
        self._headers: dict[str, Headers] = {}
        self._looked_up: set[str] = set()

    def add(self, request: Request) -> None:
        """Keep a request's headers. The scheduler may ask about a request several times."""
        if request.trace_headers:
            self._headers[request.request_id] = request.trace_headers

    def export_lookup(self, request_id: str, began: float, **attributes: int) -> None:
        """Export the first lookup of a request. A request that waits is looked up in every step.

        Args:
            request_id: the request.
            began: the lookup's beginning, of ``time.monotonic``.
            attributes: the span's attributes.
        """
        if request_id in self._headers and request_id not in self._looked_up:
            self._looked_up.add(request_id)
            span("lookup", self._headers[request_id], began, **attributes)

    def headers(self, request_ids: Iterable[str]) -> dict[str, Headers]:
        """The headers of the traced requests among ``request_ids``."""
        if not self._headers:
            return {}
        return {name: self._headers[name] for name in request_ids if name in self._headers}

    def forget(self, request_id: str) -> None:
        """Remove a finished request."""
        self._headers.pop(request_id, None)
        self._looked_up.discard(request_id)
