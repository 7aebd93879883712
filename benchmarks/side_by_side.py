"""Several servers side by side, each on the same requests in turns: the tables of the docs.

    .venv/bin/python -m benchmarks.side_by_side NAME [--output DIR] [OPTION…]

``NAME``: cache, float32, misses, busy, http, types or others. ``OPTION``: of ``kserve-lmcache
bench``; they come last, and so replace those of the comparison.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contenders import (
    Start,
    bfloat16,
    float16,
    float32,
    mp,
    multiprocess,
    off,
    ours,
    ours_float32,
    redis,
    servers,
    vllm,
)


@dataclass(frozen=True)
class Comparison:
    """What is compared, and on what.

    Attributes:
        contenders: and how many replicas of each; the first is what the others are divided by.
        options: of ``kserve-lmcache bench``.
        counts_bytes: whether the store's bytes are counted.
    """

    contenders: Sequence[tuple[Start, int]]
    options: Sequence[str]
    counts_bytes: bool = False


SWEEP = ["--output-tokens=2", "--rounds=3", "--lengths"]


def load(
    prompt: int, requests: int, clients: Sequence[int], rounds: int = 10, answer: int = 32
) -> list[str]:
    """Random prompts and answers of so many tokens; ``requests`` in each turn."""
    flags = f"--dataset-name=random --input-len={prompt} --output-len={answer}"
    flags += f" --num-prompts={requests}"
    return [f"--load={flags}", f"--rounds={rounds}", "--concurrency", *map(str, clients)]


COMPARISONS = {
    "cache": Comparison(
        [(off, 1), (ours, 2), (multiprocess, 2)],
        [*SWEEP, "512", "1024", "2048", "4096", "8064"],
        counts_bytes=True,
    ),
    "float32": Comparison([(ours_float32, 2)], [*SWEEP, "1024", "2048", "4096"], counts_bytes=True),
    "misses": Comparison([(off, 1), (ours, 1)], load(1024, 4, (1, 4))),
    "busy": Comparison([(off, 1), (ours, 1)], load(512, 24, (8,), answer=64)),
    "http": Comparison([(vllm, 1), (off, 1)], load(64, 32, (1, 8, 32), rounds=5)),
    "types": Comparison([(float32, 1), (bfloat16, 1), (float16, 1)], [*SWEEP, "512", "1024"]),
    "others": Comparison([(ours, 2), (multiprocess, 2), (mp, 2)], [*SWEEP, "1024", "4096"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("comparison", choices=COMPARISONS)
    parser.add_argument("--output", type=Path, help="for the logs and the report")
    options, more = parser.parse_known_args()
    output = options.output or Path(tempfile.mkdtemp(prefix="side-by-side-"))
    output.mkdir(parents=True, exist_ok=True)
    comparison = COMPARISONS[options.comparison]
    with servers(output) as started:
        store = redis(started)
        command = [sys.executable, "-m", "kserve_lmcache", "bench", f"--output={output / 'bench'}"]
        command += [f"--redis={store}"] if comparison.counts_bytes else []
        command += [*comparison.options, *more, "--compare"]
        for start, replicas in comparison.contenders:
            name = start.__name__
            urls = [start(started, f"{name}-{number}", store) for number in range(replicas)]
            command.append(f"{name}={','.join(urls)}")
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
