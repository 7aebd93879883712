"""Samples: the metrics that the status needs, at one time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from prometheus_client import REGISTRY, CollectorRegistry

from kserve_lmcache.metrics.table import TABLE, TIERS
from kserve_lmcache.metrics.totals import Totals, cumulative

T = TypeVar("T", str, float)

_TTFT = "vllm:time_to_first_token_seconds_bucket"
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}

# By upper bound in seconds: the count of all observations up to the bound.
Buckets = Mapping[float, float]


@dataclass(frozen=True)
class Sample:
    """The metrics at one time.

    Attributes:
        time: seconds of Unix time.
        prompt_tokens: tokens by source.
        hits: chunks by tier.
        misses: chunks by tier.
        load_seconds: buckets by tier.
        first_token_seconds: buckets of times to first token.
        plain: metrics without labels, by name.
    """

    time: float
    prompt_tokens: Mapping[str, float] = field(default_factory=dict)
    hits: Mapping[str, float] = field(default_factory=dict)
    misses: Mapping[str, float] = field(default_factory=dict)
    load_seconds: Mapping[str, Buckets] = field(default_factory=dict)
    first_token_seconds: Buckets = field(default_factory=dict)
    plain: Mapping[str, float] = field(default_factory=dict)


def read(now: float, totals: Totals, vllm: CollectorRegistry = REGISTRY) -> Sample:
    """A sample.

    Args:
        now: seconds of Unix time.
        totals: this package's metrics.
        vllm: the registry in which vLLM counts in this process.
    """

    def one_label(name: str) -> dict[str, Any]:
        return {label: value for (label,), value in totals.get(name, {}).items()}

    loads = {
        tier: {float(bound): count for bound, count in cumulative(_LOADS, counts)}
        for tier, (_, *counts) in one_label("load_seconds").items()
    }
    return Sample(
        now,
        one_label("prompt_tokens_total"),
        one_label("lookup_hits_total"),
        one_label("lookup_misses_total"),
        loads,
        _first_token_seconds(vllm),
        {name: values[()] for name, values in totals.items() if () in values},
    )


def _first_token_seconds(vllm: CollectorRegistry) -> Buckets:
    found: dict[float, float] = {}
    for family in vllm.restricted_registry([_TTFT]).collect():
        for sample in family.samples:
            bound = float(sample.labels["le"])
            found[bound] = found.get(bound, 0.0) + sample.value
    return found


_LOADS = next(row for row in TABLE if row.name == "load_seconds")


def hit_ratio(now: Sample, before: Sample) -> float | None:
    """The share of prompt tokens that came from a tier; ``None`` without prompts."""
    counted = _difference(now.prompt_tokens, before.prompt_tokens)
    total = sum(counted.values())
    return sum(counted.get(tier, 0.0) for tier in TIERS) / total if total else None


def tier_hit_ratio(now: Sample, before: Sample, tier: str) -> float | None:
    """The share of looked-up chunks that the tier had; ``None`` without lookups."""
    hits = now.hits.get(tier, 0.0) - before.hits.get(tier, 0.0)
    misses = now.misses.get(tier, 0.0) - before.misses.get(tier, 0.0)
    return hits / (hits + misses) if hits + misses else None


def quantiles(now: Buckets, before: Buckets) -> dict[str, float | None]:
    """Quantiles of the observations in between, in seconds, as Prometheus estimates them."""
    counts = _difference(now, before)
    return {name: _quantile(counts, share) for name, share in QUANTILES.items()}


def _difference(now: Mapping[T, float], before: Mapping[T, float]) -> dict[T, float]:
    return {key: value - before.get(key, 0.0) for key, value in now.items()}


def _quantile(counts: Mapping[float, float], share: float) -> float | None:
    bounds = sorted(counts)
    total = counts[bounds[-1]] if bounds else 0.0
    if not total:
        return None
    wanted, low, below = share * total, 0.0, 0.0
    for bound in bounds:
        if counts[bound] >= wanted:
            if math.isinf(bound):
                return low
            inside = counts[bound] - below
            return low + (bound - low) * ((wanted - below) / inside if inside else 1.0)
        low, below = bound, counts[bound]
    return low
