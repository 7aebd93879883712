"""The load cost model: decides whether loading chunks is faster than computing them."""

from __future__ import annotations

import math
import time
from collections import deque
from statistics import median
from typing import Protocol

MIB = 2**20

# Assumed until loads have been measured. A low rate makes the first deadlines generous.
_ASSUMED_RATE = 100 * MIB  # bytes a second
# Below these sizes a sample measures the round trip, or decoding, rather than a rate.
_MIN_LOAD = MIB  # bytes
_MIN_STEP = 256  # tokens
_SAMPLES = 9
_MIN_SAMPLES = 3  # so that one slow sample decides nothing
_DEADLINE_FACTOR = 4.0  # times the expected duration of a load
# A slow store may have become faster: it is measured again after this pause.
_MEASURE_SECONDS = 1.0


class _Rate:
    """The median of the last samples; ``None`` while there are too few samples."""

    def __init__(self) -> None:
        self.median: float | None = None
        self._samples: deque[float] = deque(maxlen=_SAMPLES)

    def add(self, sample: float) -> None:
        self._samples.append(sample)
        if len(self._samples) >= _MIN_SAMPLES:
            self.median = median(self._samples)


class Rate(Protocol):
    """A rate that is measured somewhere."""

    @property
    def tokens_per_second(self) -> float | None:
        """The rate; ``None`` while it is not known."""


class PrefillRate:
    """How fast the engine computes prompts, measured over its last prefill steps."""

    def __init__(self) -> None:
        self._rate = _Rate()
        self._step: tuple[float, int] | None = None

    def begin_step(self, tokens: int) -> None:
        """The engine begins a step that computes ``tokens`` tokens."""
        self._step = (time.monotonic(), tokens)

    def end_step(self) -> None:
        """The engine begins its next step, so the last one has ended.

        The end of a step can be seen only then, because an accelerator's kernels run after they
        were started. Idle time between two steps sometimes counts as well. The median tolerates
        that, and the error only makes loading look faster than computing.
        """
        step, self._step = self._step, None
        if step is not None and step[1] >= _MIN_STEP:
            seconds = time.monotonic() - step[0]
            if seconds > 0:
                self._rate.add(step[1] / seconds)

    @property
    def tokens_per_second(self) -> float | None:
        """The rate; ``None`` until some steps were measured."""
        return self._rate.median


class LoadCost:
    """Compares the duration of a load with the duration of the prefill that the load replaces.

    Args:
        grace: seconds that a load may take whatever its size.

    Attributes:
        prefill: the engine's rate; replaced by the one that is measured.
    """

    prefill: Rate

    def __init__(self, grace: float) -> None:
        self.prefill = PrefillRate()
        self._grace = grace
        self._reads = _Rate()
        self._last_measurement = -math.inf

    def loaded(self, size: int, seconds: float) -> None:
        """Records that a load delivered ``size`` bytes in ``seconds``, complete or not."""
        if size >= _MIN_LOAD and seconds > 0:
            self._reads.add(size / seconds)

    def measured(self, size: int, seconds: float) -> None:
        """Replaces all samples by one complete load that no request waited for."""
        self._reads = _Rate()
        for _ in range(_MIN_SAMPLES):
            self.loaded(size, seconds)

    def begin_measurement(self) -> bool:
        """Whether a store that is not worth its loads is to be measured now."""
        now = time.monotonic()
        if now - self._last_measurement < _MEASURE_SECONDS:
            return False
        self._last_measurement = now
        return True

    @property
    def bytes_per_second(self) -> float:
        """The rate at which the store is read."""
        return self._reads.median or _ASSUMED_RATE

    def is_worth(self, tokens: int, size: int) -> bool:
        """Whether to load ``size`` bytes instead of computing the ``tokens`` tokens they hold."""
        rate = self.prefill.tokens_per_second
        if rate is None or self._reads.median is None:
            return True
        return size / self.bytes_per_second < tokens / rate

    def deadline(self, tokens: int, size: int, limit: float) -> float:
        """Returns the seconds after which a load is given up, at most ``limit``.

        A load never takes longer than computing its tokens, so a load that fails at most doubles
        the time to the first token.
        """
        seconds = self._grace + _DEADLINE_FACTOR * size / self.bytes_per_second
        rate = self.prefill.tokens_per_second
        if rate is not None:
            seconds = min(seconds, max(self._grace, tokens / rate))
        return min(seconds, limit)
