"""The last hour: samples at equal intervals, and the last events."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kserve_lmcache.server.status.samples import Sample, hit_ratio, quantiles, tier_hit_ratio

PERIOD = 5.0  # seconds between samples
WINDOWS = {"1m": 60.0, "5m": 300.0, "60m": 3600.0}
_MAX_EVENTS = 20
_POINT = 6  # samples to one point of a curve, which is half a minute


@dataclass(frozen=True)
class Event:
    """A change of the state of offloading or of a tier.

    Attributes:
        time: seconds of Unix time.
        text: one sentence, without secrets.
    """

    time: float
    text: str


class History:
    """Samples of an hour and the last events.

    One thread adds. Others may read: a copy of a deque is made in one step of the interpreter.
    """

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=int(WINDOWS["60m"] / PERIOD) + 1)
        self._events: deque[Event] = deque(maxlen=_MAX_EVENTS)

    def add(self, sample: Sample) -> None:
        """Add the newest sample."""
        self._samples.append(sample)

    def add_event(self, now: float, text: str) -> None:
        """Add the newest event."""
        self._events.append(Event(now, text))

    @property
    def last(self) -> Sample:
        """The newest sample, or an empty one."""
        return self._samples[-1] if self._samples else Sample(0.0)

    def events(self) -> list[dict[str, Any]]:
        """The last events, newest first."""
        return [asdict(event) for event in reversed(list(self._events))]

    def hit_ratios(self, tier: str | None = None) -> dict[str, float | None]:
        """By window: the hit ratio of a tier's chunks, or of all prompts' tokens."""
        return {
            name: tier_hit_ratio(self.last, before, tier) if tier else hit_ratio(self.last, before)
            for name, before in self._windows().items()
        }

    def load_seconds(self, tier: str) -> dict[str, float | None]:
        """Quantiles of the last hour's loads."""
        first = self._windows()["60m"].load_seconds.get(tier, {})
        return quantiles(self.last.load_seconds.get(tier, {}), first)

    def first_token_seconds(self) -> dict[str, float | None]:
        """Quantiles of the last five minutes' times to first token."""
        before = self._windows()["5m"].first_token_seconds
        return quantiles(self.last.first_token_seconds, before)

    def curve(self) -> list[dict[str, float | None]]:
        """Hit ratio and median time to first token of each half minute, oldest first."""
        samples = list(self._samples)[::-1][::_POINT][::-1]
        return [
            {
                "time": now.time,
                "hit_ratio": hit_ratio(now, before),
                "first_token_seconds": quantiles(
                    now.first_token_seconds, before.first_token_seconds
                )["p50"],
            }
            for before, now in itertools.pairwise(samples)
        ]

    def _windows(self) -> Mapping[str, Sample]:
        """By window: the oldest sample in the window."""
        samples = list(self._samples) or [Sample(0.0)]
        return {
            name: next(each for each in samples if each.time >= samples[-1].time - seconds)
            for name, seconds in WINDOWS.items()
        }
