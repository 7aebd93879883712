"""Time to first token, by ``kserve-lmcache bench``."""

from __future__ import annotations

import json
from typing import Any

from tests.gpu.plan import CPU
from tests.gpu.steps.context import Context, StepError
from tests.gpu.steps.replicas import servers

_LENGTHS = {True: ("512", "1024"), False: ("1024", "2048", "4096", "8064")}


def run(context: Context) -> None:
    place, small = servers(context.work), context.device == CPU
    options = [f"--redis={place['redis']}", "--output-tokens=2"]
    options += ["--rounds=2"] if small else ["--rounds=3", "--pause=0.3"]
    options += ["--lengths", *_LENGTHS[small]]
    found = bench(context, options, place)
    context.tables["Median time to first token, ms"] = found["by_length"]
    conclude(context, found)


def bench(context: Context, options: list[str], place: dict[str, Any]) -> dict[str, Any]:
    """Compare the server without offloading with the two that share the Redis."""
    command = ["-m", "kserve_lmcache", "bench", "--json", f"--output={context.directory()}"]
    command += [*options, "--compare", f"off={place['off']}"]
    text = context.python(*command, f"ours={place['first']},{place['second']}")
    return dict(json.loads(text))


def conclude(context: Context, found: dict[str, Any]) -> None:
    """Report the ratios, and the requests that failed.

    Raises:
        StepError: one did.
    """
    context.tables["Ratios, with 95 % intervals"] = found["ratios"]
    context.tables["Errors"] = found["errors"]
    if found["errors"]:
        raise StepError(f"{sum(each['count'] for each in found['errors'])} requests failed")
