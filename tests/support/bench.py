"""The benchmark command, and a reading of its log that shares no code with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.server import engine_environment

COMMAND = (sys.executable, "-m", "kserve_lmcache", "bench")


def bench(
    *arguments: str, timeout: float = 120, **environ: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env=engine_environment(**environ),
    )


def lines(directory: Path, kind: str = "request") -> list[dict[str, Any]]:
    """The log's lines of a type."""
    read = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return [line for line in read if line["type"] == kind]


def percentile(values: list[float], share: float) -> float:
    """By linear interpolation between the two nearest ranks."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def figures(requests: list[dict[str, Any]]) -> dict[str, float]:
    """Of one endpoint's requests that all ended well, by the definitions of the benchmark."""
    ttft = [each["ttft"] for each in requests]
    e2e = [each["e2e"] for each in requests]
    tpot = [
        (each["e2e"] - each["ttft"]) / (each["output_tokens"] - 1)
        for each in requests
        if each["output_tokens"] > 1
    ]
    itl = [gap for each in requests for gap in each["gaps"]]
    begin = min(each["started"] for each in requests)
    seconds = max(each["started"] + each["e2e"] for each in requests) - begin
    found = {
        f"{name}_{label}": percentile(values, share)
        for name, values in {"ttft": ttft, "e2e": e2e, "tpot": tpot, "itl": itl}.items()
        for label, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
    }
    prompt = sum(each["prompt_tokens"] for each in requests)
    output = sum(each["output_tokens"] for each in requests)
    return {
        **found,
        "ttft_mean": sum(ttft) / len(ttft),
        "requests_per_second": len(requests) / seconds,
        "output_tokens_per_second": output / seconds,
        "total_tokens_per_second": (prompt + output) / seconds,
        "hit_ratio": sum(each["cached_tokens"] for each in requests) / prompt,
    }


def reported(row: dict[str, Any]) -> dict[str, float]:
    """The same figures of a row of report.json."""
    found = {
        f"{name}_{label}": row[name][label]
        for name in ("ttft", "e2e", "tpot", "itl")
        for label in ("p50", "p90", "p99")
    }
    names = ("requests_per_second", "output_tokens_per_second", "total_tokens_per_second")
    found |= {name: row[name] for name in (*names, "hit_ratio")}
    return {**found, "ttft_mean": row["ttft"]["mean"]}
