"""Memory of replicas on one machine: with a local tier each, and with one cache server for all.

    .venv/bin/python -m benchmarks.replicas_memory [--tier-gib N] [--replicas N]

Prints the sum of ``Pss`` of all processes: a page that N processes share counts once.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.contenders import alone, servers
from kserve_lmcache.cache_server.announcement import announced
from kserve_lmcache.config.memory_budget import GIB

MULTIPROCESS = "--mode=multiprocess"


@contextmanager
def cache_server(directory: Path, *size: str) -> Iterator[str]:
    """A cache server for all replicas; the argument of a replica that uses it."""
    command = [sys.executable, "-m", "kserve_lmcache", "cache-server", f"--directory={directory}"]
    with subprocess.Popen([*command, *size], stderr=subprocess.DEVNULL) as process:
        while announced(directory) is None:
            time.sleep(0.1)
        yield f"--cache-server-directory={directory}"
        process.terminate()


def taken(replicas: int, *arguments: str) -> float:
    """GiB of all processes below this one, with so many replicas of these arguments."""
    with tempfile.TemporaryDirectory() as name, servers(Path(name)) as started:
        for number in range(replicas):
            alone(started, f"replica-{number}", *arguments)
        family = psutil.Process().children(recursive=True)
        return sum(process.memory_full_info().pss for process in family) / GIB


def show(way: str, sizes: Sequence[float]) -> None:
    print(f"{way:<34}" + "".join(f"{size:7.2f} GiB" for size in sizes), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tier-gib", type=float, default=2)
    parser.add_argument("--replicas", type=int, default=2)
    options = parser.parse_args()
    size = ("--lmcache", f"max_local_cpu_size={options.tier_gib}")
    numbers = range(1, options.replicas + 1)
    show("in process", [taken(number, *size) for number in numbers])
    show("a cache server each", [taken(number, MULTIPROCESS, *size) for number in numbers])
    with tempfile.TemporaryDirectory() as name, cache_server(Path(name), *size) as shared:
        show("one cache server", [taken(number, MULTIPROCESS, shared) for number in numbers])


if __name__ == "__main__":
    main()
