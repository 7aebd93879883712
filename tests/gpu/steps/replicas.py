"""Two servers, one Redis and a server without offloading, which stay for the next steps."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import contenders

from kserve_lmcache.bench.own import Servers
from tests.gpu.steps.context import Context

_FILE = "servers.json"


def run(context: Context) -> None:
    with contenders.servers(context.directory()) as started:
        store = contenders.redis(started)
        urls, seconds = start_all(started, store, context.at_once)
        (context.work / _FILE).write_text(json.dumps({**urls, "redis": store}))
        context.facts |= {"start of " + name: f"{taken:.1f} s" for name, taken in seconds.items()}
        context.facts["started at the same time"] = min(len(urls), context.at_once)
        context.write()
        while True:  # until this process is told to end
            time.sleep(1)


def start_all(
    started: Servers, store: str, at_once: int
) -> tuple[dict[str, str], dict[str, float]]:
    """The addresses of the servers and the seconds of their starts, by name."""
    wanted = {"first": contenders.ours, "second": contenders.ours, "off": contenders.off}

    def start(name: str) -> tuple[str, float]:
        began = time.monotonic()
        return wanted[name](started, name, store), time.monotonic() - began

    with ThreadPoolExecutor(at_once) as pool:
        found = dict(zip(wanted, pool.map(start, wanted), strict=True))
    return ({name: each[0] for name, each in found.items()}, {n: e[1] for n, e in found.items()})


def servers(work: Path) -> dict[str, Any]:
    """The addresses of the servers that run: ``first``, ``second``, ``off`` and ``redis``."""
    return dict(json.loads((work / _FILE).read_text()))
