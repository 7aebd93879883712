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

from kserve_lmcache.bench.records import COLD, KINDS, OTHER, SAME, Log, Record

_RESAMPLES = 2000
_ENDS = (0.025, 0.975)  # of a 95 % interval
_FEW = 5  # with fewer requests beyond a quantile its interval is too narrow

Row = dict[str, Any]
Values = NDArray[numpy.float64]


def ratios(log: Log) -> list[Row]:
    """Figures of every further endpoint ÷ those of the first one, with 95 % intervals."""
    found: list[Row] = []
    first, *others = log.labels
    done = {(r.phase, r.endpoint, r.index): r for r in log.requests if r.error is None}
    for phase in dict.fromkeys(phase for phase, _, _ in done):
        for other in others:
            pairs = [
                (record, done[phase, first, index])
                for (where, endpoint, index), record in done.items()
                if (where, endpoint) == (phase, other) and (phase, first, index) in done
            ]
            # A sweep is about the median time to the first token.
            sweep = any(record.kind for record, _ in pairs)
            for figure in ("ttft",) if sweep else ("ttft", "tpot", "e2e"):
                both = [[getattr(record, figure) for record in pair] for pair in pairs]
                known = numpy.array([each for each in both if None not in each], dtype=float)
                for percent in ((50,) if sweep else (50, 90, 99)) if len(known) > 1 else ():
                    row = {"phase": phase, "endpoint": other, "reference": first}
                    row["figure"] = f"{figure.upper()} p{percent}"
                    found.append({**row, **interval(known, percent / 100)})
    return found


def interval(pairs: Values, quantile: float) -> Row:
    """The ratio of the columns' quantiles, with its interval and what that allows to say.

    Args:
        pairs: shape [pairs, 2].
        quantile: 0 to 1.
    """

    def ratio(values: Values) -> Values:
        at = numpy.quantile(values, quantile, axis=-2)
        return numpy.asarray(at[..., 0] / at[..., 1])

    # The seed is fixed: the same log gives the same interval.
    drawn = numpy.random.default_rng(0).integers(len(pairs), size=(_RESAMPLES, len(pairs)))
    low, high = (float(end) for end in numpy.quantile(ratio(pairs[drawn]), _ENDS))
    verdict = "lower" if high < 1 else "higher" if low > 1 else "cannot tell: it may be 1"
    if len(pairs) * (1 - quantile) < _FEW:
        verdict = "cannot tell: too few requests"
    row = {"ratio": float(ratio(pairs)), "low": low, "high": high}
    return {**row, "pairs": len(pairs), "verdict": verdict}
