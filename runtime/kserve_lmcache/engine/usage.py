"""Says in an answer's usage which tiers its cached tokens came from."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextvars import ContextVar
from typing import Any

from kserve_lmcache.connector.usage import SOURCES
from kserve_lmcache.metrics.table import COMPUTED, PREFIX_CACHE

FIELD = "cached_tokens_details"
_DETAILS = "prompt_tokens_details"

_collected: ContextVar[list[Mapping[str, int]] | None] = ContextVar("sources", default=None)


def take(output: Any) -> None:
    """Take the counts out of an output of the engine, which clients would see otherwise."""
    parameters = getattr(output, "kv_transfer_params", None)
    if not parameters or SOURCES not in parameters:
        return
    sources = parameters.pop(SOURCES)
    output.kv_transfer_params = parameters or None
    if (collected := _collected.get()) is not None:
        collected.append(sources)


class Details:
    """The counts of the requests that the active request makes of the engine.

    Args:
        collects: whether they are collected; without them nothing is added.
    """

    def __init__(self, collects: bool = True) -> None:
        self._sources: list[Mapping[str, int]] = []
        if collects:
            _collected.set(self._sources)

    def add_to(self, response: Any) -> Any:
        """The response, or the stream, with the counts in its usage."""
        if isinstance(response, AsyncGenerator):
            return self._stream(response)
        usage = getattr(response, "usage", None)
        details = getattr(usage, _DETAILS, None)
        if details is not None and (counts := self._counts(details.cached_tokens)):
            setattr(details, FIELD, counts)
        return response

    def split(self, prompt_tokens: int) -> dict[str, int]:
        """The tokens of the one request's prompt by where they came from, computed ones included.

        Without an answer of the connector all are taken for computed.
        """
        sources = dict(self._sources[-1]) if self._sources else {}
        # vLLM computes the last token of a prompt that is all there.
        return {**sources, COMPUTED: max(0, prompt_tokens - sum(sources.values()))}

    async def _stream(self, chunks: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        async for chunk in chunks:
            yield self._with_counts(chunk)

    def _with_counts(self, chunk: Any) -> Any:
        """An event of a stream. Most have no usage, and none of those is parsed."""
        if not isinstance(chunk, str) or f'"{_DETAILS}":{{' not in chunk or not self._sources:
            return chunk
        head, separator, text = chunk.partition("data: ")
        try:
            event = json.loads(text)
            details = event["usage"][_DETAILS]
            counts = self._counts(details["cached_tokens"])
        except (KeyError, TypeError, ValueError):  # the text of an answer looks like usage
            return chunk
        if not counts:
            return chunk
        details[FIELD] = counts
        dumped = json.dumps(event, separators=(",", ":"), ensure_ascii=False)
        return f"{head}{separator}{dumped}\n\n"

    def _counts(self, cached: int | None) -> dict[str, int] | None:
        """The counts of the request whose cached tokens are those of the usage, if they are known.

        Whole blocks are loaded, and vLLM computes the last token of a prompt that is all there.
        """
        for sources in self._sources:
            excess = sum(sources.values()) - (cached or 0)
            if excess == 0:
                return dict(sources)
            largest = max(sources, key=lambda name: (name != PREFIX_CACHE, sources[name]))
            if 0 < excess <= sources[largest]:
                return {**sources, largest: sources[largest] - excess}
        return None


NO_DETAILS = Details(collects=False)
