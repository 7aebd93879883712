"""The figures of a log that vLLM's benchmark does not have.

Endpoints that are compared got equal requests in turns. Equal requests are pairs, and the
bootstrap draws pairs: other work on the machine, which weighs on both, stays out of the interval.
The intervals are percentile intervals (Efron and Tibshirani, An Introduction to the Bootstrap,
1993, chapter 13).
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Any

import numpy
from numpy.typing import NDArray

from kserve_lmcache.bench.records import COLD, KINDS, OTHER, SAME, Log

_RESAMPLES = 2000
_ENDS = (0.025, 0.975)  # of a 95 % interval
_FEW = 5  # with fewer requests beyond a quantile its interval is too narrow
# One number of vLLM's benchmark for each turn, and its name in ours.
_OF_TURNS = {"TPOT mean": "mean_tpot_ms", "requests/s": "request_throughput"}

Row = dict[str, Any]
Values = NDArray[numpy.float64]


def ratios(log: Log) -> list[Row]:
    """Figures of every further endpoint ÷ those of the first one, with 95 % intervals."""
    found: list[Row] = []
    first, *others = log.labels
    done = {(r.phase, r.endpoint, r.index): r for r in log.requests if r.error is None}
    for phase, other in [(a, b) for a in dict.fromkeys(key[0] for key in done) for b in others]:
        pairs = [
            (record, done[phase, first, index])
            for (where, endpoint, index), record in done.items()
            if (where, endpoint) == (phase, other) and (phase, first, index) in done
        ]
        # A sweep is about the median time to the first token.
        sweep = any(record.kind for record, _ in pairs)
        figures: list[tuple[str, list[Any], float | None]] = [
            (
                f"{name.upper()} p{at}",
                [[getattr(r, name) for r in both] for both in pairs],
                at / 100,
            )
            for name in (("ttft",) if sweep else ("ttft", "tpot", "e2e"))
            for at in ((50,) if sweep else (50, 90, 99))
        ]
        for name, key in _OF_TURNS.items():
            of_turns = [
                [row.get(key) for row in log.figures if place(row) == (phase, endpoint)]
                for endpoint in (other, first)
            ]
            figures.append((name, list(zip(*of_turns, strict=False)), None))
        for figure, values, quantile in figures:
            known = numpy.array([each for each in values if None not in each], dtype=float)
            if len(known) > 1:
                row = {"phase": phase, "endpoint": other, "reference": first, "figure": figure}
                found.append({**row, **interval(known, quantile)})
    return found


def interval(pairs: Values, quantile: float | None) -> Row:
    """The ratio of the columns' quantiles, or means, with its interval and what that allows to say.

    Args:
        pairs: shape [pairs, 2].
        quantile: 0 to 1; ``None`` for the mean.
    """

    def ratio(values: Values) -> Values:
        at = values.mean(-2) if quantile is None else numpy.quantile(values, quantile, axis=-2)
        return numpy.asarray(at[..., 0] / at[..., 1])

    # The seed is fixed: the same log gives the same interval.
    drawn = numpy.random.default_rng(0).integers(len(pairs), size=(_RESAMPLES, len(pairs)))
    low, high = (float(end) for end in numpy.quantile(ratio(pairs[drawn]), _ENDS))
    verdict = "lower" if high < 1 else "higher" if low > 1 else "cannot tell: it may be 1"
    if len(pairs) * (1 - (quantile or 0)) < _FEW:
        verdict = "cannot tell: too few requests"
    row = {"ratio": float(ratio(pairs)), "low": low, "high": high}
    return {**row, "pairs": len(pairs), "verdict": verdict}


def place(row: Row) -> tuple[str, str]:
    """Phase and endpoint of a row."""
    return row["phase"], row["endpoint"]


def by_length(log: Log, endpoint: str) -> list[Row]:
    """Median TTFT of a sweep in milliseconds, one row for each length of the prompt.

    The lower bound of the other replica is the TTFT of the replica that has the prompt, and
    reading as many bytes from the same store through a bare socket.
    """
    mine = [r for r in log.requests if r.endpoint == endpoint and r.kind and r.error is None]
    rows: list[Row] = []
    for length in sorted({record.length for record in mine}):
        here = [record for record in mine if record.length == length]
        row: Row = {"endpoint": endpoint, "tokens": length}
        row |= {kind: _median(r.ttft for r in here if r.kind == kind) for kind in KINDS}
        bare = _median(record.bare_seconds for record in here)
        row["lower bound"] = bound = bare and row[SAME] and bare + row[SAME]
        row["÷ lower bound"] = bound and row[OTHER] / bound
        row["÷ cold"] = row[OTHER] and row[COLD] and row[OTHER] / row[COLD]
        rows.append(row)
    return rows


def _median(seconds: Iterable[float | None]) -> float | None:
    known = [each for each in seconds if each is not None]
    return 1000 * median(known) if known else None
