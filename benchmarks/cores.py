"""Tokens of prompts computed in a second: threads bound to cores, and threads on any core.

    .venv/bin/python -m benchmarks.cores [--rounds N] [--seconds N]

One server without a limit, one under a quota of one CPU, and two side by side under a quota of one
CPU each. `bound` is what a server did that chose the first cores of its quota by itself. Needs the
right to make control groups, and two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import httpx
from tests.support.limits import cpu_limited

from benchmarks.contenders import limited, servers
from benchmarks.stall import first_token, prompt
from kserve_lmcache.bench.own import Servers

_PROMPT = 2048  # tokens
_ALL = ",".join(map(str, sorted(os.sched_getaffinity(0))))
_COUNT = str(len(os.sched_getaffinity(0)))
BOUND, ANY = "bound", "any core"
# Of each way: how many servers, the quota of each, and what vLLM is told.
WAYS: Mapping[str, tuple[int, float | None, Mapping[str, Mapping[str, str]]]] = {
    "one, no limit": (1, None, {BOUND: {"BIND": _ALL}, ANY: {"BIND": "nobind", "OMP": _COUNT}}),
    "one, 1 CPU": (1, 1.0, {BOUND: {"BIND": "0"}, ANY: {"BIND": "nobind", "OMP": "1"}}),
    "two, 1 CPU each": (2, 1.0, {BOUND: {"BIND": "0"}, ANY: {"BIND": "nobind", "OMP": "1"}}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement")
    options = parser.parse_args()
    rates: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        for _ in range(options.rounds):
            for way, (count, quota, threads) in WAYS.items():
                for binding, told in threads.items():
                    with ExitStack() as limits, servers(Path(name)) as started:
                        urls = [
                            _start(started, limits, f"{number}", quota, told)
                            for number in range(count)
                        ]
                        rate = asyncio.run(_together(urls, options.seconds))
                    rates.setdefault((way, binding), []).append(rate)
                    print(f"{way}, {binding}: {rate:.0f} tokens/s", flush=True)
    for (way, binding), measured in rates.items():
        ratio = median(measured) / median(rates[way, BOUND])
        rounds = ", ".join(f"{each:.0f}" for each in measured)
        print(
            f"{way:<16} {binding:<9} {median(measured):7.0f} tokens/s"
            f"   ÷ bound {ratio:5.2f}   {rounds}"
        )


def _start(
    started: Servers, limits: ExitStack, name: str, quota: float | None, told: Mapping[str, str]
) -> str:
    prefix = limits.enter_context(cpu_limited(quota)) if quota else ()
    threads = {"VLLM_CPU_OMP_THREADS_BIND": told["BIND"]}
    threads |= {"OMP_NUM_THREADS": told["OMP"]} if "OMP" in told else {}
    return limited(started, name, prefix, **threads)


async def _together(urls: list[str], seconds: float) -> float:
    """Tokens of prompts that all servers compute in a second."""
    return sum(await asyncio.gather(*(_rate(url, seconds) for url in urls)))


async def _rate(url: str, seconds: float) -> float:
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        await first_token(client, prompt(0, _PROMPT))
        began, computed = time.monotonic(), 0
        while (taken := time.monotonic() - began) < seconds:
            computed += 1
            await first_token(client, prompt(computed, _PROMPT))
        return computed * _PROMPT / taken


if __name__ == "__main__":
    main()
