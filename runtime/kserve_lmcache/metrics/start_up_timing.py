"""Where the time goes until the server is ready: moments of its processes, and their table."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

Moments = Mapping[str, float]  # seconds of the epoch, by what was reached then

PROCESS, IMPORTED, PLANNED, LOADED, CACHED, PROVEN, ENGINE, READY = (
    "process",
    "imported",
    "planned",
    "loaded",
    "cached",
    "proven",
    "engine",
    "ready",
)
ANSWERS = " answers"  # after the name of a tier

# What happens until a moment is reached, in the server's process or in its first worker's.
_SERVER, _WORKER = 0, 1
_PHASES = (
    (_SERVER, IMPORTED, "imports of the server"),
    (_SERVER, PLANNED, "arguments, the model's identity, configuration"),
    (_WORKER, IMPORTED, "imports of the engine's processes"),
    (_WORKER, LOADED, "weights, and what memory they leave"),
    (_WORKER, CACHED, "KV cache and LMCache"),
    (_WORKER, PROVEN, "proof of the copy"),
    (_SERVER, ENGINE, "warm-up"),
    (_SERVER, READY, "routes"),
)

_moments: dict[str, float] = {}


def reached(moment: str) -> None:
    """This process gets there now, if for the first time."""
    _moments.setdefault(moment, time.time())


def moments() -> dict[str, float]:
    """Of this process, with its beginning."""
    return {PROCESS: _began(), **_moments}


@functools.cache
def _began() -> float:
    """When the kernel started this process: proc(5), to a hundredth of a second."""
    if sys.platform != "linux":
        return min(_moments.values(), default=time.time())
    after_name = Path("/proc/self/stat").read_text().rpartition(")")[2]
    ticks = int(after_name.split()[19])  # since the machine's start
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age


def table(server: Moments, worker: Moments) -> str:
    """Seconds of each phase; one whose end is not known is told together with the next.

    Args:
        server: of its process.
        worker: of the engine's first worker; empty where it reports nothing.
    """
    last, texts = server[PROCESS], []
    rows = [("ready after", max(server.values()) - last)]
    for place, moment, text in _PHASES:
        texts.append(text)
        if (now := (server, worker)[place].get(moment)) is not None:
            rows.append((f"  {'; '.join(texts)}", now - last))
            last, texts = now, []
    rows += [
        (f"  beside it: the {name}, from the weights on", moment - worker[LOADED])
        for name, moment in worker.items()
        if name.endswith(ANSWERS)
    ]
    width = max(len(text) for text, _ in rows)
    return "\n".join(f"{text:<{width}} {seconds:6.2f} s" for text, seconds in rows)
