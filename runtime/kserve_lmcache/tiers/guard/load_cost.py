"""How fast a store is read and how fast the engine computes: which of them is sooner done?"""

from __future__ import annotations

import time
from collections import deque
from statistics import median

MIB = 2**20

# Until a load has been measured: slow enough that its deadline is generous.
_ASSUMED_RATE = 100 * MIB  # bytes a second
_SMALLEST_SAMPLE = MIB  # bytes; less says more about the round trip than about the rate
_SMALLEST_STEP = 256  # tokens; smaller steps say more about decoding
_SAMPLES = 9
_FEWEST_SAMPLES = 3  # one of a busy moment decides nothing
# A load that takes this much longer than expected will not come.
_PATIENCE = 4.0
# A store once found slow may be faster today.
_TRY_AGAIN = 30.0  # seconds


class _Rate:
    """The median of the last samples; ``None`` while there are too few."""

    def __init__(self) -> None:
        self.median: float | None = None
        self._samples: deque[float] = deque(maxlen=_SAMPLES)

    def add(self, sample: float) -> None:
        self._samples.append(sample)
        if len(self._samples) >= _FEWEST_SAMPLES:
            self.median = median(self._samples)


class Prefill:
    """How fast the engine computes, by its last prefill steps."""

    def __init__(self) -> None:
        self._rate = _Rate()
        self._step: tuple[float, int] | None = None

    def computes(self, tokens: int) -> None:
        """The engine begins to compute ``tokens`` tokens, with nothing to load before it."""
        self._step = (time.monotonic(), tokens)

    def computed(self) -> None:
        """The engine has computed, or comes to its next step.

        Only then is it seen what a step took: an accelerator's kernels run on after they were
        started. Time without any request is in it too now and then; the median and the direction
        of the mistake (loading looks better than it is) make that harmless.
        """
        step, self._step = self._step, None
        if step is not None and step[1] >= _SMALLEST_STEP:
            seconds = time.monotonic() - step[0]
            if seconds > 0:
                self._rate.add(step[1] / seconds)

    @property
    def rate(self) -> float | None:
        """Tokens a second; ``None`` until some steps were seen."""
        return self._rate.median


class Pace:
    """Whether a store is read sooner than the engine computes.

    Args:
        grace: seconds that an answer of the store may take whatever its size.

    Attributes:
        prefill: the engine's.
    """

    def __init__(self, grace: float) -> None:
        self.prefill = Prefill()
        self._grace = grace
        self._reads = _Rate()
        self._last_load = 0.0

    def loaded(self, size: int, seconds: float) -> None:
        """A load of ``size`` bytes, or what came of it in time, took ``seconds``."""
        self._last_load = time.monotonic()
        if size >= _SMALLEST_SAMPLE and seconds > 0:
            self._reads.add(size / seconds)

    @property
    def read_rate(self) -> float:
        """Bytes a second of a load."""
        return self._reads.median or _ASSUMED_RATE

    def is_worth(self, tokens: int, size: int) -> bool:
        """Whether reading ``size`` bytes is sooner done than computing their ``tokens`` tokens."""
        if self.prefill.rate is None or self._reads.median is None:
            return True
        if time.monotonic() - self._last_load > _TRY_AGAIN:
            return True
        return size / self.read_rate < tokens / self.prefill.rate

    def deadline(self, tokens: int, size: int, most: float) -> float:
        """Seconds after which a load is given up, at most ``most``.

        Never longer than computing the tokens takes, so that a load that fails costs a request
        at most as much again.
        """
        seconds = self._grace + _PATIENCE * size / self.read_rate
        if self.prefill.rate is not None:
            seconds = min(seconds, max(self._grace, tokens / self.prefill.rate))
        return min(seconds, most)
