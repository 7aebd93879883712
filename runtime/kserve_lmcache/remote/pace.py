"""How fast the store is read and how fast the engine computes: which of them is sooner done?"""

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
# A load that takes this much longer than expected will not come.
_PATIENCE = 4.0
# A store once found slow may be faster today.
_TRY_AGAIN = 30.0  # seconds


class Pace:
    """Medians of the last loads and of the last prefill steps.

    Args:
        grace: seconds that an answer of the store may take whatever its size.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._rates: deque[float] = deque(maxlen=_SAMPLES)
        self._prefills: deque[float] = deque(maxlen=_SAMPLES)
        self._step: tuple[float, int] | None = None
        self._last_load = 0.0

    def step(self, tokens: int) -> None:
        """The engine begins a step that computes ``tokens`` tokens.

        What a step took is seen when the next one begins, so that an accelerator's kernels,
        which run on after they were started, are in it. Time without any request is in it too
        now and then; the median and the direction of the mistake (loading looks better than it
        is) make that harmless.
        """
        now = time.monotonic()
        if self._step is not None:
            began, computed = self._step
            if computed >= _SMALLEST_STEP and now > began:
                self._prefills.append(computed / (now - began))
        self._step = (now, tokens)

    def loaded(self, size: int, seconds: float) -> None:
        """A load of ``size`` bytes took ``seconds``."""
        self._last_load = time.monotonic()
        if size >= _SMALLEST_SAMPLE and seconds > 0:
            self._rates.append(size / seconds)

    @property
    def read_rate(self) -> float:
        """Bytes a second of a load."""
        return median(self._rates) if self._rates else _ASSUMED_RATE

    @property
    def prefill_rate(self) -> float | None:
        """Tokens a second of a prefill; ``None`` until one was seen."""
        return median(self._prefills) if self._prefills else None

    def is_worth(self, tokens: int, size: int) -> bool:
        """Whether reading ``size`` bytes is sooner done than computing their ``tokens`` tokens."""
        if self.prefill_rate is None or not self._rates:
            return True
        if time.monotonic() - self._last_load > _TRY_AGAIN:
            return True
        return size / self.read_rate < tokens / self.prefill_rate

    def deadline(self, tokens: int, size: int, most: float) -> float:
        """Seconds after which a load is given up, at most ``most``.

        Never longer than computing the tokens takes, so that a load that fails costs a request
        at most as much again.
        """
        seconds = self._grace + _PATIENCE * size / self.read_rate
        if self.prefill_rate is not None:
            seconds = min(seconds, max(self._grace, tokens / self.prefill_rate))
        return min(seconds, most)
