"""Every metric of ours: one table, from which all processes make what they count with.

Names have the prefix ``kserve_lmcache_``, base units, and labels of few values. vLLM's and
LMCache's own metrics stand beside them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

PREFIX = "kserve_lmcache_"

# What stands behind the label ``tier``.
TIERS = ("local_cpu", "disk", "remote")
# What stands behind the label ``source``: the tiers, and these.
COMPUTED, PREFIX_CACHE = "computed", "prefix_cache"
# What stands behind the label ``state``; one of them is 1.
STATES = ("off", "starting", "on", "degraded")

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@dataclass(frozen=True)
class Metric:
    """One row.

    Attributes:
        name: without the prefix; that of a counter ends in ``_total``.
        kind: of prometheus_client.
        help: one line.
        labels: their names.
        mode: how a gauge's values of several processes become one.
        buckets: of a histogram.
    """

    name: str
    kind: type[Counter] | type[Gauge] | type[Histogram]
    help: str
    labels: tuple[str, ...] = ()
    mode: str = "livesum"
    buckets: tuple[float, ...] = _SECONDS


def _counts(*rows: tuple[str, str]) -> tuple[Metric, ...]:
    return tuple(Metric(f"{name}_total", Counter, text, ("tier",)) for name, text in rows)


_SERVER = (
    Metric("offload_state", Gauge, "1 for the state that offloading is in.", ("state",), "max"),
    Metric(
        "build_info",
        Gauge,
        "1; the labels are versions.",
        ("version", "kserve", "vllm", "lmcache", "torch"),
        "max",
    ),
    Metric(
        "namespace_info",
        Gauge,
        "1; replicas share what they cache where the label is equal.",
        ("namespace",),
        "max",
    ),
)

_ENGINE = (
    Metric(
        "prompt_tokens_total",
        Counter,
        "Tokens of prompts by where their KV came from: computed, prefix_cache (vLLM's own), or a "
        "tier.",
        ("source",),
    ),
    Metric(
        "saved_prefill_seconds_total",
        Counter,
        "Estimate: tokens loaded, divided by the median rate of the engine's last prefill steps.",
    ),
    Metric(
        "connector_exceptions_total",
        Counter,
        "Exceptions in the connector, by the call that they came in; requests went on without.",
        ("call",),
    ),
    Metric("local_cpu_capacity_bytes", Gauge, "Size of the local CPU tier, of all workers."),
    Metric("local_cpu_used_bytes", Gauge, "What of it is in use."),
)

# Those of a tier that is not the local CPU's are counted by remote/counters.py under these names.
_TIER = (
    *_counts(
        ("lookups", "Prompts that the tier was asked for."),
        ("lookup_hits", "Chunks that it had of them."),
        ("lookup_misses", "Chunks that it was asked for and did not have."),
        ("lookups_skipped", "Prompts that it was not asked for, since it does not answer."),
        ("loads", "Prompts whose chunks were read."),
        ("loads_skipped", "Prompts that are computed sooner than they would be read."),
        ("chunks_read", "Chunks read, and right."),
        ("read_bytes", "Their bytes."),
        ("chunks_missing", "Chunks that were gone between lookup and read."),
        ("chunks_late", "Chunks that did not come in time, or whose read failed."),
        ("chunks_corrupt", "Chunks that were not what was stored; none is used."),
        ("chunks_without_room", "Chunks that the local tier had no room for."),
        ("chunks_written", "Chunks written."),
        ("written_bytes", "Their bytes."),
        ("chunks_known", "Chunks not written, since the tier has them."),
        ("dropped_queue", "Chunks not written, since the queue was full."),
        ("dropped_full", "Chunks not written, since the tier is full."),
        ("dropped_failed", "Chunks whose write failed."),
        ("failures", "Calls that failed or took too long."),
        ("exceptions", "Mistakes of ours, each of them logged."),
        ("connects", "Times that the tier began to answer."),
        ("opened", "Times that it was given up."),
    ),
    Metric("load_seconds", Histogram, "Of a prompt's chunks out of the tier.", ("tier",)),
    Metric("store_seconds", Histogram, "Of a batch of chunks into the tier.", ("tier",)),
    Metric("up", Gauge, "1 while the tier answers; its breaker is closed.", ("tier",), "livemin"),
    Metric("queue_bytes", Gauge, "What waits to be written.", ("tier",)),
)

TABLE = (*_SERVER, *_ENGINE, *_TIER)
_BY_NAME = {metric.name: metric for metric in TABLE}


@functools.cache
def metric(name: str, **labels: str) -> Any:
    """This process's counter, gauge or histogram.

    Args:
        name: of the table, without the prefix.
        **labels: their values.

    Raises:
        KeyError: the table has no such row.
    """
    parent = _parent(name)
    return parent.labels(**labels) if labels else parent


@functools.cache
def _parent(name: str) -> Any:
    row = _BY_NAME[name]
    if row.kind is Gauge:
        options: dict[str, Any] = {"multiprocess_mode": row.mode}
    elif row.kind is Histogram:
        options = {"buckets": row.buckets}
    else:
        options = {}
    return row.kind(PREFIX + row.name, row.help, row.labels, **options)
