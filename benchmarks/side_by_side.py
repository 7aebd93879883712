"""Several servers side by side, each on the same requests in turns: the tables of the docs.

    .venv/bin/python -m benchmarks.side_by_side cache|misses|http|others [--output DIR] [OPTION…]

``OPTION``: of ``kserve-lmcache bench``; they come last, and so replace those of the comparison.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.stores import redis_process

from benchmarks.contenders import Start, mp, off, ours, running, vllm


@dataclass(frozen=True)
class Comparison:
    """What is compared, and on what.

    Attributes:
        contenders: and how many replicas of each; the first is what the others are divided by.
        runs: options of the benchmark, for one run each on the same servers.
        counts_bytes: whether the store's bytes are counted.
    """

    contenders: Sequence[tuple[Start, int]]
    runs: Sequence[str]
    counts_bytes: bool = False


LENGTHS = "--workload=lengths --lengths 512 1024 2048 4096 8064 --output-tokens=2"
COMPARISONS = {
    "cache": Comparison([(off, 1), (ours, 2)], [f"{LENGTHS} --requests=3"], counts_bytes=True),
    "misses": Comparison(
        [(off, 1), (ours, 1)],
        ["--workload=random --unique-tokens=1024 --requests=30 --concurrency 1 4"],
    ),
    "http": Comparison(
        [(vllm, 1), (off, 1)],
        [
            f"--workload=random --unique-tokens=64 {load} {stream}"
            for load in ("--requests=32 --concurrency 1", "--requests=128 --concurrency 8 32")
            for stream in ("", "--no-stream")
        ],
    ),
    "others": Comparison([(ours, 2), (mp, 2)], [f"{LENGTHS} --lengths 1024 4096 --requests=3"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("comparison", choices=COMPARISONS)
    parser.add_argument("--output", type=Path, help="for the logs and reports")
    options, more = parser.parse_known_args()
    output = options.output or Path(tempfile.mkdtemp(prefix="side-by-side-"))
    output.mkdir(parents=True, exist_ok=True)
    comparison = COMPARISONS[options.comparison]
    with (
        redis_process(output) as store,
        running(output, store, *comparison.contenders) as urls,
    ):
        endpoints = [f"{name}={','.join(each)}" for name, each in urls.items()]
        redis = [f"--redis={store.url}"] if comparison.counts_bytes else []
        for number, run in enumerate(comparison.runs):
            command = [sys.executable, "-m", "kserve_lmcache", "bench", "--compare", *endpoints]
            command += [*redis, *run.split(), f"--output={output / str(number)}", *more]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
