"""One server with an attention backend: its proof, and hits of its local tier.

vLLM on a GPU ends with the reason where it cannot use the backend that it is told to use.
"""

from __future__ import annotations

import re

import httpx
from benchmarks import contenders

from tests.gpu.steps.answers import CHUNK, KNOWN, LENGTH, ask, check, compare, filler, prompt
from tests.gpu.steps.context import Context, StepError
from tests.support.metrics import samples

_PROMPTS = 4
# vLLM's own cache has room for little more than the longest prompt (23 KB a token in 16 bits).
_SIZE = "220M" if contenders.IN_32_BITS else "110M"
_LENGTH = ("--max-model-len=4096", f"--kv-cache-memory-bytes={_SIZE}")
_FILLER = 9 * CHUNK
_FILLERS = 3
_HITS = "vllm:external_prefix_cache_hits_total"


def run(context: Context) -> None:
    with contenders.servers(context.directory()) as started:
        flags = [*_LENGTH, f"--attention-backend={context.argument}"]
        url = contenders.alone(started, context.name, *flags)
        log = (context.directory() / f"{context.name}.log").read_text(errors="replace")
        proof = re.search(r"Check copy: (\w+), (.*)", log)
        if proof is None or proof[1] != "ok":
            raise StepError(f"the start proves no copy: {proof[2] if proof else 'no such line'}")
        context.facts["proof at the start"] = proof[2]
        with httpx.Client(base_url=url, timeout=120) as client:
            state = client.get("/offload").json()["state"]
            if state != "on":
                raise StepError(f"offloading is {state}")
            prompts = [prompt(number) for number in range(_PROMPTS)]
            # vLLM's own cache has a prompt as soon as it was computed, and not for long.
            pairs = [(ask(client, each), ask(client, each)) for each in prompts]
            for number in range(_FILLERS):
                ask(client, filler(number, _FILLER), 1)
            before = samples(url).get(_HITS, 0.0)
            loaded = [ask(client, each) for each in prompts]
            hits = samples(url).get(_HITS, 0.0) - before
    rows = [
        compare(f"{number + 1}", one, own, computed)
        for number, (one, (computed, own)) in enumerate(zip(loaded, pairs, strict=True))
    ]
    context.facts["tokens of hits"] = f"{hits:.0f} of {_PROMPTS * LENGTH}"
    context.tables[f"{context.argument}: hits of the local tier"] = rows
    check(rows)
    if hits != _PROMPTS * KNOWN:
        raise StepError(f"{hits:.0f} tokens came from LMCache, and not {_PROMPTS * KNOWN}")
