"""Seconds from the command to ready: this server and vLLM's own, with a Redis and without.

    .venv/bin/python -m benchmarks.start_up [--rounds N]

They start alone, in turns, with the same engine arguments.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.contenders import off, ours, redis, servers, stock, vllm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name, servers(Path(name)) as beside:
        store = redis(beside)
        for number in range(options.rounds + 1):
            for start in (vllm, off, stock, ours):
                with servers(Path(name)) as started:
                    began = time.monotonic()
                    start(started, start.__name__, store)
                    taken = time.monotonic() - began
                if number:  # the first round reads all files from the disk
                    seconds.setdefault(start.__name__, []).append(taken)
    for each, taken_by_it in seconds.items():
        ratios = [mine / theirs for mine, theirs in zip(taken_by_it, seconds["vllm"], strict=True)]
        rounds = ", ".join(f"{taken:.1f}" for taken in taken_by_it)
        print(
            f"{each:<6} {median(taken_by_it):6.1f} s   ÷ vllm {median(ratios):5.2f}"
            f" ({min(ratios):.2f} to {max(ratios):.2f})   {rounds}"
        )


if __name__ == "__main__":
    main()
