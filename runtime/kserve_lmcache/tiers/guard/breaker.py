"""The circuit breaker of a tier: gives up a store that fails or is slow, and probes it again."""

from __future__ import annotations

import math
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable

from kserve_lmcache.tiers.guard.daemon_threads import start_supervised

# Consecutive failures of one kind of call that open the breaker. Each costs a request its
# deadline. The kinds are counted apart, since a store may answer lookups and fail every load.
_MAX_FAILURES = 3
# Of the last calls, this many may fail or be slow.
_WINDOW = 16
_MAX_SLOW = 8
SLOW = 0.8  # of its deadline: a call that takes longer is slow

_FIRST_PAUSE = 0.1  # seconds between probes, doubled each time
_LONGEST_PAUSE = 2.0
# Seconds without a call after which the store is probed although the breaker is closed, so that
# an idle server notices a store that is gone.
_IDLE = 10.0
# Seconds. The pauses go on growing when the breaker opens sooner than this after it closed.
_STEADY = 10.0


class Breaker:
    """Knows whether the store may be called. While the breaker is open, only probes call it.

    A breaker is open at first, so that an unreachable store delays no request.

    Args:
        probe: calls the store and raises when the store does not answer.
        on_close: called when the store answers again.
        on_open: called with the reason when the store is given up.
        on_probe_failure: called with the reason when a probe fails.
        on_exception: called with an exception that no callback should raise; probes go on.
        name: of the thread that probes.

    Attributes:
        is_closed: whether the store may be called.
        since: when the breaker opened or closed last, in seconds of Unix time.
    """

    def __init__(
        self,
        probe: Callable[[], None],
        on_close: Callable[[], None],
        on_open: Callable[[str], None],
        on_probe_failure: Callable[[str], None],
        on_exception: Callable[[Exception], None],
        name: str,
    ) -> None:
        self._probe = probe
        self._on_close = on_close
        self._on_open = on_open
        self._on_probe_failure = on_probe_failure
        self._changed = threading.Condition()
        self.is_closed = False
        self.since = time.time()
        self._stopping = False
        self._last_call = time.monotonic()
        self._failures: Counter[str] = Counter()
        self._slow: deque[bool] = deque(maxlen=_WINDOW)
        start_supervised(name, self._run, on_exception)

    def succeeded(self, kind: str, share: float | None = None) -> None:
        """Records that a call of this kind succeeded.

        Args:
            kind: of the call.
            share: how much of its deadline the call took; ``None`` where the duration says
                nothing about the store.
        """
        with self._changed:
            self._failures[kind] = 0
            self._last_call = time.monotonic()
        if share is not None:
            self._record(share > SLOW, f"most calls take over {SLOW:.0%} of their deadline")

    def failed(self, kind: str, reason: str, at_once: bool = False) -> None:
        """Records that a call of this kind failed or missed its deadline.

        Args:
            kind: of the call.
            reason: why it failed.
            at_once: whether the store is given up after this one failure.
        """
        with self._changed:
            self._failures[kind] += _MAX_FAILURES if at_once else 1
            self._last_call = time.monotonic()
        self._record(True, f"{kind}: {reason}")

    def wait_closed(self, seconds: float) -> bool:
        """Waits up to ``seconds`` for the breaker to close. Returns whether it is closed."""
        with self._changed:
            return self._changed.wait_for(lambda: self.is_closed, seconds)

    def stop(self) -> None:
        """Opens the breaker for good and ends the probes."""
        with self._changed:
            self._stopping = True
            self.is_closed = False
            self._changed.notify_all()

    def _record(self, slow: bool, reason: str) -> None:
        with self._changed:
            if not self.is_closed:
                return
            self._slow.append(slow)
            failures = max(self._failures.values(), default=0)
            if failures < _MAX_FAILURES and sum(self._slow) <= _MAX_SLOW:
                return
            self._switch(closed=False)
        self._on_open(reason)

    def _switch(self, closed: bool) -> None:
        self.is_closed = closed
        self.since = time.time()
        self._failures.clear()
        self._slow.clear()
        self._changed.notify_all()

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        closed_at = -math.inf
        while self._wait_until_open():
            was_steady = time.monotonic() - closed_at >= _STEADY
            pause = _FIRST_PAUSE if was_steady else self._sleep(pause)
            while not self._stopping and (error := self._failure()) is not None:
                self._on_probe_failure(error)
                pause = self._sleep(pause)
            with self._changed:
                if self._stopping:
                    return
                self._switch(closed=True)
            closed_at = time.monotonic()
            self._on_close()

    def _wait_until_open(self) -> bool:
        """Waits until the breaker opens. Returns whether the store is to be probed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or not self.is_closed, _IDLE)
                if self._stopping or not self.is_closed:
                    return not self._stopping
                is_idle = time.monotonic() - self._last_call >= _IDLE
            if is_idle and (error := self._failure()) is not None:
                with self._changed:
                    if not self.is_closed:  # a call failed meanwhile
                        continue
                    self._switch(closed=False)
                self._on_open(error)

    def _failure(self) -> str | None:
        """Probes the store. Returns the reason where the probe fails."""
        try:
            self._probe()
        except Exception as error:
            return str(error)
        return None

    def _sleep(self, pause: float) -> float:
        """Sleeps up to ``pause`` seconds. Returns the next pause."""
        # A random part of the pause, so that the replicas of a lost store do not return together.
        seconds = random.uniform(0.5, 1) * pause  # noqa: S311 (no secret)
        with self._changed:
            self._changed.wait_for(lambda: self._stopping, seconds)
        return min(2 * pause, _LONGEST_PAUSE)
