"""Prompts that the first server computes and the second one takes from the Redis."""

from __future__ import annotations

import httpx
from benchmarks.contenders import stored_chunks

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
    chunks = _PROMPTS * KNOWN // CHUNK
    until(lambda: stored_chunks(place["redis"]) >= chunks, seconds=20)
    with httpx.Client(base_url=place["second"], timeout=120) as second:
        loaded = [ask(second, each) for each in prompts]
    rows = [
        compare(f"{number + 1}", one, own, computed)
        for number, (one, (computed, own)) in enumerate(zip(loaded, pairs, strict=True))
    ]
    context.facts["chunks in the Redis"] = stored_chunks(place["redis"])
    context.tables["Prompts of the first server on the second one"] = rows
    check(rows)
