"""Time per output token of a busy server, by ``kserve-lmcache bench``."""

from __future__ import annotations

from benchmarks.side_by_side import load

from tests.gpu.plan import CPU
from tests.gpu.steps.context import Context
from tests.gpu.steps.replicas import servers
from tests.gpu.steps.ttft import bench, conclude

_FIGURES = ("median_ttft_ms", "median_tpot_ms", "request_throughput", "completed", "failed")


def run(context: Context) -> None:
    small = context.device == CPU
    options = load(256, 8, (4,), rounds=2) if small else load(512, 48, (8,), rounds=5, answer=64)
    options += [] if small else ["--pause=0.3"]
    found = bench(context, options, servers(context.work))
    context.tables["Figures of vllm bench serve, medians of the turns"] = [
        {
            "server": row["endpoint"],
            "phase": row["phase"],
            **{key: row.get(key) for key in _FIGURES},
        }
        for row in found["load"]
    ]
    conclude(context, found)
