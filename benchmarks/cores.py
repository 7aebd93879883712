"""Tokens of prompts and of answers in a second: threads that are bound to cores, and others.

    .venv/bin/python -m benchmarks.cores [--rounds N] [--seconds N] [--ways WAY ...]

One server without a limit, one under a quota of one CPU, and two side by side under a quota of one
CPU each. `bound` binds a thread to each of the first cores of the quota, which every server chooses
alike. `any core` limits the number of threads alone. `one less` leaves a core to vLLM's scheduler.
Needs the right to make control groups, and two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import httpx
from tests.support.limits import cpu_limited

from benchmarks.contenders import limited, servers
from benchmarks.stall import first_token, prompt, tokens

_PROMPT = 2048  # tokens
_ANSWER = 64  # tokens
_CORES = sorted(os.sched_getaffinity(0))
_ALL = {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, _CORES))}
_FIRST = {"VLLM_CPU_OMP_THREADS_BIND": str(_CORES[0])}


def _any(threads: int) -> dict[str, str]:
    return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}


BOUND = "bound"
_ONE = {BOUND: _FIRST, "any core": _any(1)}
# Of each way: how many servers, the quota of each, and the variables that vLLM reads.
WAYS: Mapping[str, tuple[int, float | None, Mapping[str, Mapping[str, str]]]] = {
    "one, no limit": (
        1,
        None,
        {BOUND: _ALL, "any core": _any(len(_CORES)), "one less": _any(len(_CORES) - 1)},
    ),
    "one, 1 CPU": (1, 1.0, _ONE),
    "two, 1 CPU each": (2, 1.0, _ONE),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=15, help="of each measurement")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    rates: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        for _ in range(options.rounds):
            for way in options.ways:
                count, quota, threads = WAYS[way]
                for places, environ in threads.items():
                    with ExitStack() as limits, servers(Path(name)) as started:
                        urls = [
                            limited(started, f"{number}", _prefix(limits, quota), **environ)
                            for number in range(count)
                        ]
                        rate = asyncio.run(_together(urls, options.seconds))
                    rates.setdefault((way, places), []).append(rate)
    for (way, places), measured in rates.items():
        prompts, answers = (median(each) for each in zip(*measured, strict=True))
        of_prompts, of_answers = (median(e) for e in zip(*rates[way, BOUND], strict=True))
        print(
            f"{way:<16} {places:<9} prompts {prompts:6.0f}, ÷ bound {prompts / of_prompts:5.2f}"
            f"   answers {answers:6.1f}, ÷ bound {answers / of_answers:5.2f}"
        )


def _prefix(limits: ExitStack, quota: float | None) -> Sequence[str]:
    return limits.enter_context(cpu_limited(quota)) if quota else ()


async def _together(urls: list[str], seconds: float) -> tuple[float, float]:
    """Tokens of prompts, and then of answers, of all servers in a second."""
    prompts = await asyncio.gather(*(_prompts(url, seconds) for url in urls))
    answers = await asyncio.gather(*(_answers(url, seconds) for url in urls))
    return sum(prompts), sum(answers)


async def _prompts(url: str, seconds: float) -> float:
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        await first_token(client, prompt(0, _PROMPT))
        began, computed = time.monotonic(), 0
        while (taken := time.monotonic() - began) < seconds:
            computed += 1
            await first_token(client, prompt(computed, _PROMPT))
        return computed * _PROMPT / taken


async def _answers(url: str, seconds: float) -> float:
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        began, written = time.monotonic(), 0
        while (taken := time.monotonic() - began) < seconds:
            async for _ in tokens(client, prompt(10_000 + written, 20), _ANSWER):
                written += 1
        return written / taken


if __name__ == "__main__":
    main()
