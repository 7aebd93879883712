"""Load by ``vllm bench serve``: its datasets, arrivals, traces, times and figures.

Every turn is one run of vLLM's benchmark against one endpoint. The endpoints take turns in random
order, with equal requests: other work on the machine weighs on all of them alike.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from kserve_lmcache.bench.client import Endpoint, Replica, one_line
from kserve_lmcache.bench.records import Record
from kserve_lmcache.errors import UsageError

# Routes by vLLM's name of the API.
_ROUTES = {"openai": "/completions", "openai-chat": "/chat/completions"}
_FIGURES = (
    "mean_",
    "median_",
    "p90_",
    "p99_",
    "request_t",
    "request_g",
    "output_t",
    "completed",
    "failed",
)
_LISTS = ("ttfts", "itls", "input_lens", "output_lens", "start_times", "errors")


@dataclass(frozen=True)
class Load:
    """One phase of load."""

    endpoints: Sequence[Endpoint]  # connected
    flags: Sequence[str]  # of vllm bench serve
    concurrency: int | None  # requests under way at a time; None: they arrive by themselves
    rounds: int  # turns of each endpoint
    seed: int
    pause: float  # seconds before each turn

    def run(self, write: Callable[[str, Any], None]) -> None:
        """Measure, and write requests and figures to the log at the end of each turn.

        Raises:
            UsageError: vLLM is not installed, or refuses the flags or the dataset.
        """
        try:
            from vllm.benchmarks.serve import add_cli_args, main_async
        except ModuleNotFoundError as error:
            text = f"--load runs the code of vLLM ({error}): pip install 'kserve-lmcache[cpu]'"
            raise UsageError(text) from error
        parser = argparse.ArgumentParser()
        parser.error = _refuse  # type: ignore[method-assign]
        add_cli_args(parser)
        phase = f"concurrency {self.concurrency}" if self.concurrency else "open loop"
        begin, order = time.perf_counter(), random.Random(self.seed)  # noqa: S311
        for round_ in range(self.rounds):
            for endpoint in order.sample(self.endpoints, len(self.endpoints)):
                time.sleep(self.pause if len(self.endpoints) > 1 else 0)
                number = round_ % len(endpoint.replicas)
                args = parser.parse_args(self._flags(endpoint.replicas[number], round_))
                if args.backend not in _ROUTES:
                    _refuse(f"--backend={args.backend} is not one of {', '.join(_ROUTES)}")
                args.endpoint = _ROUTES[args.backend]
                try:
                    result = asyncio.run(main_async(args))
                except (ValueError, OSError, RuntimeError, AssertionError) as error:
                    raise UsageError(f"--load: vLLM's benchmark cannot run: {error}") from error
                except asyncio.CancelledError:
                    # Ctrl-C did; asyncio forgets that where it came before the first step.
                    raise KeyboardInterrupt from None
                requests = list(zip(*(result[name] for name in _LISTS), strict=True))
                for index, (ttft, gaps, prompt, output, start, failure) in enumerate(requests):
                    place = (endpoint.label, number, phase, round_ * len(requests) + index, prompt)
                    times = (start - begin, ttft + sum(gaps), ttft or None, prompt, output)
                    lines = failure.splitlines() or ([] if ttft else ["no token"])
                    told = one_line(lines[-1]) if lines else None  # the last one of a traceback
                    write("request", Record(*place, *times, error=told))
                figures = {key: value for key, value in result.items() if key.startswith(_FIGURES)}
                write("figures", {"phase": phase, "endpoint": endpoint.label, **figures})

    def _flags(self, replica: Replica, round_: int) -> list[str]:
        flags = [f"--tokenizer={replica.root}", "--temperature=0", "--ignore-eos"]
        flags += ["--percentile-metrics=ttft,tpot,itl,e2el", "--metric-percentiles=90,99"]
        flags += [f"--max-concurrency={self.concurrency}"] if self.concurrency else []
        # No round finds the prompts of the one before in a cache.
        flags += [*self.flags, f"--seed={self.seed + round_}", "--save-detailed", "--disable-tqdm"]
        return [*flags, f"--base-url={replica.api}", f"--model={replica.model}"]


def _refuse(message: str) -> NoReturn:
    raise UsageError(f"--load: {message}")
