"""How long running answers stand still, by ``benchmarks.stall``."""

from __future__ import annotations

from benchmarks.stall import Link, measured

from tests.gpu.plan import CPU
from tests.gpu.steps.context import Context

_PROMPTS = {True: 2, False: 5}


def run(context: Context) -> None:
    small = context.device == CPU
    rates = [100e6] if small else [100e6, 0.0]
    links = [*(Link(rate=rate) for rate in rates)]
    links += [Link(delay=delay, is_lookup=True) for delay in (0.0, 0.04)]
    rows = context.tables["Running answers during a load, and during a lookup"] = []
    for each in measured(links, _PROMPTS[small], 2, context.directory(), context.at_once):
        rows.append(
            {
                "link": str(each.link),
                "first token, ms": 1000 * each.load,
                "quiet gap, ms": 1000 * each.quiet,
                "gap, ms: median": 1000 * each.median,
                "longest": 1000 * each.longest,
                "goal, ms": 1000 * each.goal,
                "goal met": each.longest <= each.goal,
            }
        )
        context.write()  # what is known when the time of the step ends
