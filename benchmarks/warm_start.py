"""Seconds to ready with compilation: without compiled code, and with that of an earlier start.

    .venv/bin/python -m benchmarks.warm_start [--rounds N]

Each round starts a server with an empty ``compile_cache_dir``, and one more with what the first
left.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.contenders import MODEL, OURS, ROOT, servers
from kserve_lmcache.bench.own import free_port

ENGINE = ("--max-model-len=8192", "--kv-cache-memory-bytes=800M")
SAVE_SECONDS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    cold, warm = [], []
    with tempfile.TemporaryDirectory() as name:
        for number in range(options.rounds + 1):
            kept = Path(name, f"kept-{number}")
            pair = start(Path(name), kept), start(Path(name), kept)
            if number:  # the first round reads all files from the disk
                cold.append(pair[0])
                warm.append(pair[1])
                print(f"cold {pair[0]:6.1f} s   warm {pair[1]:6.1f} s", flush=True)
            size = sum(file.stat().st_size for file in kept.rglob("*") if file.is_file())
    ratios = [after / before for before, after in zip(cold, warm, strict=True)]
    print(f"cold {median(cold):.1f} s, warm {median(warm):.1f} s, {size / 1e6:.0f} MB kept")
    print(f"warm ÷ cold {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def start(directory: Path, kept: Path) -> float:
    """Seconds until a server is ready. It ends when it has kept its compiled code."""
    port = free_port()
    command = [str(ROOT / "entrypoint.sh"), f"--model_id={MODEL}", "--model_name=small", *ENGINE]
    with servers(directory) as started:
        began = time.monotonic()
        started.start(
            "server",
            [*command, f"--http_port={port}"],
            f"http://127.0.0.1:{port}{OURS}",
            KSERVE_LMCACHE_COMPILE_CACHE_DIR=str(kept),
        )
        seconds = time.monotonic() - began
        deadline = time.monotonic() + SAVE_SECONDS
        while not list(kept.rglob("compiled")):
            if time.monotonic() > deadline:
                raise SystemExit(f"nothing is kept in {kept}: see the log in {directory}")
            time.sleep(0.1)
    return seconds


if __name__ == "__main__":
    main()
