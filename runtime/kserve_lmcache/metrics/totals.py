"""Adds up the metrics of all processes, and shows them to Prometheus."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from kserve_lmcache.metrics.registry import REGISTRY, Gauge, Histogram, Sample
from kserve_lmcache.metrics.snapshots import Snapshot, this_process
from kserve_lmcache.metrics.table import PREFIX, TABLE, Metric

# By name, then by label values: a number, or the sum and the count of each bucket of a histogram.
Totals = Mapping[str, Mapping[tuple[str, ...], Any]]

_MODES: Mapping[str, Callable[[list[Any]], Any]] = {"sum": sum, "min": min, "max": max}


def add_up(snapshots: Mapping[str, Snapshot], engine_is_alive: bool) -> Totals:
    """The metrics of this process and of the engine's processes.

    Args:
        snapshots: of the engine's processes.
        engine_is_alive: whether the processes run. Processes that have ended have no gauges.
    """
    others = [each for process, each in snapshots.items() if process != this_process()]
    values: dict[str, dict[tuple[str, ...], list[Any]]] = defaultdict(lambda: defaultdict(list))
    for name, labels, value in _samples(others, engine_is_alive):
        values[name][tuple(labels)].append(value)
    return {
        name: {labels: _add(_ROWS[name], each) for labels, each in by_label.items()}
        for name, by_label in values.items()
    }


def _samples(others: Iterable[Snapshot], with_gauges: bool) -> Iterator[Sample]:
    yield from REGISTRY.samples()
    for snapshot in others:
        for sample in snapshot["metrics"]:
            if with_gauges or _ROWS[sample[0]].kind is not Gauge:
                yield sample


def _add(row: Metric, values: list[Any]) -> Any:
    if row.kind is Histogram:
        return [sum(each) for each in zip(*values, strict=True)]
    return _MODES[row.mode if row.kind is Gauge else "sum"](values)


class TotalsCollector:
    """A collector for a registry of prometheus_client.

    Args:
        totals: gives the current totals.
    """

    def __init__(self, totals: Callable[[], Totals]) -> None:
        self._totals = totals

    def collect(self) -> Iterator[Any]:
        """A family for each row of the table that has values."""
        totals = self._totals()
        for row in TABLE:
            if row.name in totals:
                yield _family(row, totals[row.name])


def _family(row: Metric, values: Mapping[tuple[str, ...], Any]) -> Any:
    name, arguments = PREFIX + row.name, {"labels": row.labels}
    if row.kind is Histogram:
        histogram = HistogramMetricFamily(name, row.help, **arguments)
        for labels, (total, *counts) in values.items():
            histogram.add_metric(labels, list(cumulative(row, counts)), total)
        return histogram
    kind = GaugeMetricFamily if row.kind is Gauge else CounterMetricFamily
    family = kind(name, row.help, **arguments)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def cumulative(row: Metric, counts: Iterable[float]) -> Iterator[tuple[str, float]]:
    """Prometheus' buckets: the upper bound, and the count of all observations up to the bound."""
    total = 0.0
    for bound, count in zip((*row.buckets, float("inf")), counts, strict=True):
        total += count
        yield floatToGoString(bound), total


_ROWS = {row.name: row for row in TABLE}
