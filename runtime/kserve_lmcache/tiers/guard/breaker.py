"""Whether the store is worth asking: given up when it fails or is slow, tried again by itself."""

from __future__ import annotations

import math
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable

# Consecutive failures of one kind of call after which the store is given up. Each costs a request
# its deadline. By kind, since a store may find everything and deliver nothing.
_FAILURES = 3
# Of the last calls, this many may be slow, which is to take most of their time, or to fail.
_WINDOW = 16
_MOST_SLOW = 8
SLOW = 0.8  # of the time that a call may take

_FIRST_PAUSE = 0.1  # seconds between probes, doubled each time
_LONGEST_PAUSE = 2.0
# Seconds without a call, after which the store is probed although it is not given up: a server that
# nobody asks anything must not call a store that is gone well.
_IDLE = 10.0
# Seconds; a store that is lost sooner after it came is not probed at once, and ever more rarely.
_STEADY = 10.0


class Breaker:
    """Open, the store is not touched but by one probe at a time; closed, all is well.

    It begins open, so that a store that is not there yet delays nobody.

    Args:
        probe: asks the store for a sign of life; raises when it has none.
        on_close: told that the store answers.
        on_open: told why the store is given up.
        on_refusal: told why a probe failed.
    """

    def __init__(
        self,
        probe: Callable[[], None],
        on_close: Callable[[], None],
        on_open: Callable[[str], None],
        on_refusal: Callable[[str], None],
    ) -> None:
        self._probe = probe
        self._on_close = on_close
        self._on_open = on_open
        self._on_refusal = on_refusal
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._closed = False
        self._since = time.time()
        self._stopping = False
        self._last_call = time.monotonic()
        self._failures: Counter[str] = Counter()
        self._slow: deque[bool] = deque(maxlen=_WINDOW)
        self._thread = threading.Thread(target=self._run, name="remote-probe", daemon=True)
        self._thread.start()

    @property
    def is_closed(self) -> bool:
        """Whether the store may be asked."""
        return self._closed

    @property
    def since(self) -> float:
        """When it opened or closed, in seconds of Unix time."""
        return self._since

    def succeeded(self, kind: str, share: float | None = None) -> None:
        """A call answered.

        Args:
            kind: of the call.
            share: how much of the time that it might have taken it took, where that says
                something of the store.
        """
        with self._lock:
            self._failures[kind] = 0
            self._last_call = time.monotonic()
        if share is not None:
            self._note(share > SLOW, f"most answers take over {SLOW:.0%} of the time they may take")

    def failed(self, kind: str, reason: str) -> None:
        """A call failed or was too late."""
        with self._lock:
            self._failures[kind] += 1
            self._last_call = time.monotonic()
        self._note(True, f"{kind}: {reason}")

    def wait_closed(self, seconds: float) -> bool:
        """Wait at most ``seconds`` for the store to answer; whether it does."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed, seconds)

    def stop(self) -> None:
        """End the probing; the store is not touched again."""
        with self._changed:
            self._stopping = True
            self._closed = False
            self._changed.notify_all()

    def _note(self, slow: bool, reason: str) -> None:
        with self._changed:
            if not self._closed:
                return
            self._slow.append(slow)
            most = max(self._failures.values(), default=0)
            if most < _FAILURES and sum(self._slow) <= _MOST_SLOW:
                return
            self._turn(closed=False)
        self._on_open(reason)

    def _turn(self, closed: bool) -> None:
        self._closed = closed
        self._since = time.time()
        self._failures.clear()
        self._slow.clear()
        self._changed.notify_all()

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        closed_at = -math.inf
        while self._wait_open():
            lost_at_once = time.monotonic() - closed_at < _STEADY
            pause = self._sleep(pause) if lost_at_once else _FIRST_PAUSE
            while not self._answers():
                pause = self._sleep(pause)
            with self._changed:
                if self._stopping:
                    return
                self._turn(closed=True)
            closed_at = time.monotonic()
            self._on_close()

    def _wait_open(self) -> bool:
        """Wait until the store is given up; whether it is to be probed then."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or not self._closed, _IDLE)
                if self._stopping or not self._closed:
                    return not self._stopping
                idle = time.monotonic() - self._last_call >= _IDLE
            if idle:
                self._look_at_idle()

    def _look_at_idle(self) -> None:
        try:
            self._probe()
        except Exception as error:
            with self._changed:
                if not self._closed:
                    return
                self._turn(closed=False)
            self._on_open(str(error))

    def _answers(self) -> bool:
        """Probe; also true when nobody wants to know any more."""
        if self._stopping:
            return True
        try:
            self._probe()
        except Exception as error:
            self._on_refusal(str(error))
            return False
        return True

    def _sleep(self, pause: float) -> float:
        """Wait about ``pause`` seconds; the next pause."""
        # Replicas that lost the store at the same time do not come back as one.
        seconds = random.uniform(0.5, 1) * pause  # noqa: S311 (no secret)
        with self._changed:
            self._changed.wait_for(lambda: self._stopping, seconds)
        return min(2 * pause, _LONGEST_PAUSE)
