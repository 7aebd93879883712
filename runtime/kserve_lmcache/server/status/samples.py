"""The server's own metrics, read back: what one process counts, all of them know."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from kserve_lmcache.metrics.table import PREFIX, TIERS

T = TypeVar("T", str, float)

_TTFT = "vllm:time_to_first_token_seconds_bucket"
_LOADS = f"{PREFIX}load_seconds_bucket"
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}

# Upper bounds of a histogram's buckets, in seconds, with the count up to each.
Buckets = Mapping[float, float]


@dataclass(frozen=True)
class Sample:
    """All counts at one time.

    Attributes:
        time: seconds of Unix time.
        prompt_tokens: by source.
        hits: chunks by tier.
        misses: chunks by tier.
        load_seconds: buckets by tier.
        first_token_seconds: buckets of times to first token.
        gauges: of no label, without our prefix.
    """

    time: float
    prompt_tokens: Mapping[str, float] = field(default_factory=dict)
    hits: Mapping[str, float] = field(default_factory=dict)
    misses: Mapping[str, float] = field(default_factory=dict)
    load_seconds: Mapping[str, Buckets] = field(default_factory=dict)
    first_token_seconds: Buckets = field(default_factory=dict)
    gauges: Mapping[str, float] = field(default_factory=dict)


def read(now: float) -> Sample:
    """A sample of every process's counts, from the files of prometheus_client."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    tokens: dict[str, float] = {}
    by_tier: dict[str, dict[str, float]] = {"lookup_hits_total": {}, "lookup_misses_total": {}}
    loads: dict[str, dict[float, float]] = {}
    first: dict[float, float] = {}
    gauges: dict[str, float] = {}
    for family in registry.collect():
        for sample in family.samples:
            name = sample.name.removeprefix(PREFIX)
            labels = sample.labels
            if sample.name == _TTFT:
                bound = float(labels["le"])
                first[bound] = first.get(bound, 0.0) + sample.value
            elif sample.name == _LOADS:
                loads.setdefault(labels["tier"], {})[float(labels["le"])] = sample.value
            elif name == "prompt_tokens_total":
                tokens[labels["source"]] = sample.value
            elif name in by_tier:
                by_tier[name][labels["tier"]] = sample.value
            elif not labels and sample.name.startswith(PREFIX):
                gauges[name] = sample.value
    hits, misses = by_tier.values()
    return Sample(now, tokens, hits, misses, loads, first, gauges)


def hit_ratio(now: Sample, before: Sample) -> float | None:
    """Which part of the prompts' tokens came from a tier; ``None`` without prompts."""
    counted = _difference(now.prompt_tokens, before.prompt_tokens)
    total = sum(counted.values())
    return sum(counted.get(tier, 0.0) for tier in TIERS) / total if total else None


def tier_hit_ratio(now: Sample, before: Sample, tier: str) -> float | None:
    """Which part of the chunks that a tier was asked for it had; ``None`` if of none."""
    hits = now.hits.get(tier, 0.0) - before.hits.get(tier, 0.0)
    misses = now.misses.get(tier, 0.0) - before.misses.get(tier, 0.0)
    return hits / (hits + misses) if hits + misses else None


def quantiles(now: Buckets, before: Buckets) -> dict[str, float | None]:
    """The quantiles of what was observed in between, in seconds, as Prometheus estimates them."""
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
