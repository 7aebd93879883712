"""When requests are sent.

Open loop: at times that do not depend on the answers. Poisson arrivals have exponential gaps, as
``vllm bench serve`` draws them with its default ``--burstiness=1``. A slow server gets more and
more requests at once, as it would in service.

Closed loop: a number of clients, each of which sends its next request when it has its answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy

from kserve_lmcache.errors import UsageError


@dataclass(frozen=True)
class Arrivals:
    """One phase of a run. Exactly one of ``rate`` and ``concurrency`` is set, or ``trace``.

    Attributes:
        rate: requests a second (Poisson).
        concurrency: requests under way at a time.
        trace: at the times that the requests themselves have.
    """

    rate: float | None = None
    concurrency: int | None = None
    trace: bool = False

    def __post_init__(self) -> None:
        if self.rate is not None and not (0 < self.rate < math.inf):
            raise UsageError(f"--rate={self.rate:g} is not a number above 0")
        if self.concurrency is not None and self.concurrency < 1:
            raise UsageError(f"--concurrency={self.concurrency} is less than 1")

    def __str__(self) -> str:
        if self.trace:
            return "trace"
        if self.rate is not None:
            return f"{self.rate:g} requests/s"
        return f"concurrency {self.concurrency}"

    @property
    def is_open(self) -> bool:
        """Whether requests are sent at times that are known beforehand."""
        return self.trace or self.rate is not None


def poisson(rate: float, count: int, seed: int) -> list[float]:
    """The seconds after the start at which ``count`` requests arrive, ``rate`` a second.

    The gaps are exponential with mean ``1 / rate``; the first request arrives after one of them.
    """
    gaps = numpy.random.default_rng(seed).exponential(1 / rate, size=count)
    return [float(time) for time in numpy.cumsum(gaps)]
