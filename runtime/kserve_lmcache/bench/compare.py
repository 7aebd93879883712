"""Ratios of two endpoints with confidence intervals, so that noise cannot pick the winner.

The endpoints were asked the same in turns, in one run. Request by request the two are pairs, and
the bootstrap draws pairs: what weighed on both alike (another process, a long prompt) stays out of
the interval. The intervals are percentile intervals (Efron and Tibshirani, An Introduction to the
Bootstrap, 1993, chapter 13).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from kserve_lmcache.bench.records import Record
from kserve_lmcache.bench.statistics import QUANTILES, Group, grouped

RESAMPLES = 2000
CONFIDENCE = 0.95
# With fewer requests beyond a quantile its interval is narrower than it ought to be.
_FEW = 5

FIGURES: Mapping[str, Callable[[Record], float | None]] = {
    "TTFT": lambda record: record.ttft,
    "TPOT": lambda record: record.tpot,
    "E2E": lambda record: record.e2e,
}


@dataclass(frozen=True)
class Ratio:
    """One endpoint's figure ÷ the first endpoint's.

    Attributes:
        what: the requests, as ``random, concurrency 1``.
        endpoint: whose figure is divided.
        reference: by whose.
        figure: TTFT, TPOT, E2E, or requests a second.
        quantile: p50, p90, p99, or empty.
        ratio: of the two quantiles, over all pairs.
        low: end of the confidence interval.
        high: end of the confidence interval.
        pairs: how many; for requests a second, slices.
        few: whether too few requests lie beyond the quantile for the interval to be trusted.
    """

    what: str
    endpoint: str
    reference: str
    figure: str
    quantile: str
    ratio: float
    low: float
    high: float
    pairs: int
    few: bool

    @property
    def verdict(self) -> str:
        """Lower or higher; no word of a difference while the interval holds 1."""
        if self.few:
            return "too few to tell"
        if self.low <= 1 <= self.high:
            return "no difference seen"
        return "lower" if self.high < 1 else "higher"


def ratios(records: Sequence[Record], endpoints: Sequence[str], seed: int = 0) -> list[Ratio]:
    """Every endpoint after the first ÷ the first, for all groups that both have.

    Args:
        records: of a run.
        endpoints: labels; the first is the reference.
        seed: of the bootstrap: the same log gives the same intervals.
    """
    groups = grouped(record for record in records if record.error is None)
    found = []
    for group, base in groups.items():
        if not endpoints or group.endpoint != endpoints[0]:
            continue
        for other in endpoints[1:]:
            key = Group(other, group.workload, group.phase, group.kind, group.length)
            if key in groups:
                found += _of_pair(group, other, base, groups[key], seed)
    return found


def _of_pair(
    group: Group, other: str, base: Sequence[Record], against: Sequence[Record], seed: int
) -> list[Ratio]:
    found = []
    partner = {record.index: record for record in base}
    pairs = [(record, partner[record.index]) for record in against if record.index in partner]
    for figure, value in FIGURES.items():
        if group.kind and figure != "TTFT":
            continue  # a sweep of lengths is about the first token
        both = [(value(mine), value(theirs)) for mine, theirs in pairs]
        known = numpy.array([each for each in both if None not in each], dtype=float)
        if len(known) < 2:
            continue
        for name, quantile in QUANTILES.items():
            ratio, low, high = bootstrap(known[:, 0], known[:, 1], quantile, seed)
            few = len(known) * (1 - quantile) < _FEW
            found.append(
                Ratio(
                    group.what,
                    other,
                    group.endpoint,
                    figure,
                    name,
                    ratio,
                    low,
                    high,
                    len(known),
                    few,
                )
            )
    rates = None if group.kind else _throughput(group, other, base, against, seed)
    return [*found, rates] if rates else found


def bootstrap(
    mine: NDArray[numpy.float64], theirs: NDArray[numpy.float64], quantile: float, seed: int
) -> tuple[float, float, float]:
    """``quantile(mine) / quantile(theirs)`` with its interval.

    Args:
        mine: shape [pairs].
        theirs: shape [pairs]; the same index is the same request.
        quantile: 0 to 1.
        seed: of the resampling.

    Returns:
        The ratio and both ends of the interval of :data:`CONFIDENCE`.
    """
    drawn = numpy.random.default_rng(seed).integers(len(mine), size=(RESAMPLES, len(mine)))
    ratio = numpy.quantile(mine, quantile) / numpy.quantile(theirs, quantile)
    resampled = numpy.quantile(mine[drawn], quantile, axis=1) / numpy.quantile(
        theirs[drawn], quantile, axis=1
    )
    low, high = _interval(resampled)
    return float(ratio), low, high


def _throughput(
    group: Group, other: str, base: Sequence[Record], against: Sequence[Record], seed: int
) -> Ratio | None:
    """Completed requests a second; it is slices, not requests, that are drawn."""
    mine, theirs = _slices(against), _slices(base)
    count = min(len(mine), len(theirs))
    if count < 2:
        return None
    mine, theirs = mine[:count], theirs[:count]
    drawn = numpy.random.default_rng(seed).integers(count, size=(RESAMPLES, count))

    def rate(slices: NDArray[numpy.float64]) -> NDArray[numpy.float64]:
        total = slices.sum(axis=-2)
        return numpy.asarray(total[..., 0] / total[..., 1])

    ratio = float(rate(mine) / rate(theirs))
    low, high = _interval(rate(mine[drawn]) / rate(theirs[drawn]))
    few = count < _FEW
    return Ratio(group.what, other, group.endpoint, "requests/s", "", ratio, low, high, count, few)


def _slices(records: Sequence[Record]) -> NDArray[numpy.float64]:
    """Requests and seconds of each slice, in order: shape [slices, 2]."""
    spans: dict[int, tuple[int, float, float]] = {}
    for record in records:
        count, first, last = spans.get(record.slice, (0, record.started, record.ended))
        spans[record.slice] = count + 1, min(first, record.started), max(last, record.ended)
    return numpy.array([(n, last - first) for _, (n, first, last) in sorted(spans.items())])


def _interval(values: NDArray[numpy.float64]) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = numpy.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
