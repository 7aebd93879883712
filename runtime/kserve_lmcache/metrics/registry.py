"""Counters, gauges and histograms of one process, whose values travel to the server as snapshots.

The engine's processes send their values (:mod:`.snapshots`), and the server's process adds them up
(:mod:`.totals`).
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, TypeVar

# Name, label values, and value: a number, or of a histogram the sum and the count of each bucket.
Sample = list[Any]


class Registry:
    """Creates instruments. All of them share one lock.

    Attributes:
        version: grows with every change of a value.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.version = 0
        self._instruments: dict[tuple[str, tuple[str, ...]], Instrument] = {}

    def instrument(
        self, kind: type[T], name: str, labels: tuple[str, ...], buckets: Sequence[float]
    ) -> T:
        """The instrument of that name and of these label values; begins at 0."""
        with self.lock:
            found = self._instruments.get((name, labels))
            if found is None:
                found = self._instruments[name, labels] = kind(self, buckets)
                self.version += 1
            assert isinstance(found, kind)  # noqa: S101 (the table has one kind for each name)
            return found

    def samples(self) -> list[Sample]:
        """The values of all instruments, as JSON takes them."""
        with self.lock:
            return [
                [name, list(labels), each.value()]
                for (name, labels), each in self._instruments.items()
            ]


class Instrument:
    """A value that changes."""

    def __init__(self, registry: Registry, buckets: Sequence[float]) -> None:
        self._registry = registry
        self._value = 0.0

    def value(self) -> Any:
        """The current value."""
        return self._value


T = TypeVar("T", bound=Instrument)


class Counter(Instrument):
    """Only grows."""

    def inc(self, amount: float = 1) -> None:
        """Add ``amount``."""
        if amount:
            with self._registry.lock:
                self._value += amount
                self._registry.version += 1


class Gauge(Instrument):
    """Is set."""

    def set(self, value: float) -> None:
        """Replace the value."""
        with self._registry.lock:
            if value != self._value:
                self._value = value
                self._registry.version += 1


class Histogram(Instrument):
    """Counts observations by bucket; the last bucket has no upper bound."""

    def __init__(self, registry: Registry, buckets: Sequence[float]) -> None:
        super().__init__(registry, buckets)
        self._buckets = buckets
        self._counts = [0] * (len(buckets) + 1)

    def observe(self, value: float) -> None:
        """Count one observation."""
        with self._registry.lock:
            self._value += value
            self._counts[bisect_left(self._buckets, value)] += 1
            self._registry.version += 1

    def value(self) -> list[float]:
        """The sum of all observations, and the count of each bucket."""
        return [self._value, *self._counts]


REGISTRY = Registry()
