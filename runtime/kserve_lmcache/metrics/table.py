"""The table of this package's metrics.

Names have the prefix ``kserve_lmcache_`` and base units, and labels have few values. ``/metrics``
has vLLM's and LMCache's own metrics as well.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from kserve_lmcache.metrics.registry import REGISTRY, Counter, Gauge, Histogram

PREFIX = "kserve_lmcache_"

# Values of the label ``tier``.
TIERS = ("local_cpu", "disk", "remote")
# Values of the label ``source``, beside the tiers.
COMPUTED, PREFIX_CACHE = "computed", "prefix_cache"
# Values of the label ``state``. The metric of one of them is 1.
STATES = ("off", "starting", "on", "degraded")

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@dataclass(frozen=True)
class Metric:
    """One row.

    Attributes:
        name: without the prefix; the name of a counter ends in ``_total``.
        kind: how the value changes.
        help: one sentence.
        labels: their names.
        mode: how a gauge's values of several processes become one: ``sum``, ``min`` or ``max``.
        buckets: upper bounds of a histogram's buckets.
    """

    name: str
    kind: type[Counter] | type[Gauge] | type[Histogram]
    help: str
    labels: tuple[str, ...] = ()
    mode: str = "sum"
    buckets: tuple[float, ...] = _SECONDS


def _counts(*rows: tuple[str, str]) -> tuple[Metric, ...]:
    return tuple(Metric(f"{name}_total", Counter, text, ("tier",)) for name, text in rows)


_SERVER = (
    Metric(
        "offload_state",
        Gauge,
        "1 for the current state of offloading, 0 for the others.",
        ("state",),
        "max",
    ),
    Metric(
        "build_info",
        Gauge,
        "Always 1. The labels are the versions.",
        ("version", "kserve", "vllm", "lmcache", "torch"),
        "max",
    ),
    Metric(
        "namespace_info",
        Gauge,
        "Always 1. Replicas with the same namespace share cached KV.",
        ("namespace",),
        "max",
    ),
)

_ENGINE = (
    Metric(
        "prompt_tokens_total",
        Counter,
        "Prompt tokens by the source of their KV: computed, prefix_cache (vLLM's own), or a tier.",
        ("source",),
    ),
    Metric(
        "saved_prefill_seconds_total",
        Counter,
        "Estimate of saved prefill time: loaded tokens divided by the median rate of the last "
        "prefill steps.",
    ),
    Metric(
        "connector_exceptions_total",
        Counter,
        "Exceptions in the connector, by the call. The requests continued without offloading.",
        ("call",),
    ),
    Metric("local_cpu_capacity_bytes", Gauge, "Size of the local CPU tier of all workers."),
    Metric("local_cpu_used_bytes", Gauge, "Memory of the local CPU tier that is in use."),
)

# tiers/guard/counters.py counts under these names for every tier but the local CPU tier.
_TIER = (
    *_counts(
        ("lookups", "Lookups, one for each prompt."),
        ("lookup_hits", "Chunks that a lookup found, from the start of the prompt."),
        ("lookup_misses", "Chunks that a lookup did not find."),
        ("lookups_skipped", "Lookups that were not sent because the tier does not answer."),
        ("loads", "Loads, one for each prompt."),
        ("loads_skipped", "Loads that were not started because computing the prompt is faster."),
        ("chunks_read", "Chunks read from the tier whose checksum matched."),
        ("read_bytes", "Bytes of the chunks in chunks_read_total."),
        ("chunks_missing", "Chunks that disappeared between the lookup and the load."),
        ("chunks_late", "Chunks that missed the deadline of the load, or whose read failed."),
        ("chunks_corrupt", "Chunks that failed the check of their content. None of them is used."),
        ("chunks_without_room", "Loads that ended because the local tier had no room."),
        ("chunks_written", "Chunks written to the tier."),
        ("written_bytes", "Bytes of the chunks in chunks_written_total."),
        ("chunks_known", "Chunks that were not written because the tier has them."),
        ("dropped_queue", "Chunks that were dropped because the queue was full."),
        ("dropped_full", "Chunks that were dropped because the tier is full."),
        ("dropped_failed", "Chunks that were dropped because the write failed."),
        (
            "quota_refused",
            "Chunks that were not stored because their tenant has filled its quota.",
        ),
        (
            "quota_evicted",
            "Chunks that were deleted because their tenant has exceeded its quota.",
        ),
        ("failures", "Calls to the tier that failed or missed their deadline."),
        ("exceptions", "Unexpected exceptions of the tier's code. The log has the trace of each."),
        ("connects", "Changes from a tier that does not answer to a tier that answers."),
        ("opened", "Openings of the circuit breaker. The tier gets no requests while it is open."),
    ),
    Metric("load_seconds", Histogram, "Duration of a load of a prompt's chunks.", ("tier",)),
    Metric("store_seconds", Histogram, "Duration of a write of a batch of chunks.", ("tier",)),
    Metric(
        "up",
        Gauge,
        "1 while the tier answers, that is, while its circuit breaker is closed.",
        ("tier",),
        "min",
    ),
    Metric("queue_bytes", Gauge, "Bytes of the chunks that wait in the queue.", ("tier",)),
)

TABLE = (*_SERVER, *_ENGINE, *_TIER)
_BY_NAME = {metric.name: metric for metric in TABLE}


@functools.cache
def metric(name: str, **labels: str) -> Any:
    """This process's counter, gauge or histogram.

    Args:
        name: a name of the table, without the prefix.
        **labels: the values of the labels.

    Raises:
        KeyError: the table has no such row, or the row has other labels.
    """
    row = _BY_NAME[name]
    if set(labels) != set(row.labels):
        raise KeyError(f"{name} has the labels {row.labels}")
    values = tuple(labels[label] for label in row.labels)
    return REGISTRY.instrument(row.kind, name, values, row.buckets)
