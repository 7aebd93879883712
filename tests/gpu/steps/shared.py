"""Prompts that the first server computes and the second one takes from the Redis."""

from __future__ import annotations

import httpx
from redis import Redis

from tests.gpu.steps.answers import CHUNK, KNOWN, ask, check, compare, prompt
from tests.gpu.steps.context import Context, StepError
from tests.gpu.steps.replicas import servers
from tests.support.waiting import until

_PROMPTS = 4
_FIRST = 100  # other prompts than those of the backends


def run(context: Context) -> None:
    place = servers(context.work)
    prompts = [prompt(_FIRST + number) for number in range(_PROMPTS)]
    with httpx.Client(base_url=place["first"], timeout=120) as first:
        pairs = [(ask(first, each), ask(first, each)) for each in prompts]
    if any(computed.cached for computed, _ in pairs):
        raise StepError("a prompt that was never sent came from a cache")
    store = Redis.from_url(place["redis"])
    chunks = _PROMPTS * KNOWN // CHUNK
    until(lambda: count(store) >= chunks, seconds=20)
    with httpx.Client(base_url=place["second"], timeout=120) as second:
        loaded = [ask(second, each) for each in prompts]
    rows = [
        compare(f"{number + 1}", one, own, computed)
        for number, (one, (computed, own)) in enumerate(zip(loaded, pairs, strict=True))
    ]
    context.facts["chunks in the Redis"] = count(store)
    context.tables["Prompts of the first server on the second one"] = rows
    check(rows)


def count(store: Redis) -> int:
    """Cached chunks."""
    return sum(b":replicas:" not in key for key in store.scan_iter(count=1000))
