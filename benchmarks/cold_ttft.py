"""What a remote store costs a request that finds nothing in it: time to first token, cold.

    .venv/bin/python -m benchmarks.cold_ttft [--requests N] [--words N] [--layers N]

Two servers with the same cores, one of them with a Redis, are asked the same new prompts, in turn;
which of them comes first changes with every prompt.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path
from statistics import median

import openai
from tests.support import models
from tests.support.load import COLD, ask
from tests.support.server import Server, engine_environment, long_prompt, running
from tests.support.stores import redis_process

ARGUMENTS = ("--no-enable-prefix-caching",)
WARM_UP = 5


def ttft(server: Server, prompt: str) -> float:
    """Milliseconds until the first token."""
    with openai.OpenAI(base_url=server.openai_url, api_key="none", max_retries=0) as client:
        record = ask(client, server.name, prompt, COLD, max_tokens=2)
    assert record.ttft is not None, record.error
    return 1000 * record.ttft


def interval(ratios: list[float]) -> tuple[float, float]:
    """Of the median, with 95 % confidence, by 10,000 samples with replacement."""
    choice = random.Random(0)  # noqa: S311 (no secret)
    medians = sorted(median(choice.choices(ratios, k=len(ratios))) for _ in range(10_000))
    return medians[250], medians[-251]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--words", type=int, default=400)
    parser.add_argument("--layers", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        model = (f"--model_id={models.first_layers(directory / 'model', options.layers)}",)
        with redis_process(directory) as store:
            environ = engine_environment(
                LMCACHE_REMOTE_URL=store.url, LMCACHE_MAX_LOCAL_CPU_SIZE="0.5"
            )
            with (
                running(directory / "on.log", *ARGUMENTS, environ=environ, model=model) as on,
                running(directory / "off.log", *ARGUMENTS, "--offload=off", model=model) as off,
            ):
                pairs = []
                for number in range(options.requests + WARM_UP):
                    prompt = long_prompt(f"cold{number}", words=options.words)
                    order = (on, off) if number % 2 else (off, on)
                    taken = {server.url: ttft(server, prompt) for server in order}
                    pairs.append((taken[on.url], taken[off.url]))
    pairs = pairs[WARM_UP:]
    ratios = [with_store / without for with_store, without in pairs]
    low, high = interval(ratios)
    print(f"{len(pairs)} prompts of {options.words} words, {options.layers} layers")
    print(f"with Redis    {median(each for each, _ in pairs):8.1f} ms")
    print(f"without       {median(each for _, each in pairs):8.1f} ms")
    print(f"ratio         {median(ratios):8.3f}    (95 %: {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
