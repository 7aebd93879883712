"""Whether the store is worth asking: given up when it fails or is slow, tried again by itself."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable

# Consecutive failures after which the store is given up. Each costs a request its deadline.
_FAILURES = 3
# Of the last calls, this many may be slow, which is to take most of their time, or to fail.
_WINDOW = 16
_MOST_SLOW = 8
SLOW = 0.8  # of the time that a call may take

_FIRST_PAUSE = 0.1  # seconds between probes, doubled each time
_LONGEST_PAUSE = 2.0


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
        self._failures = 0
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

    def succeeded(self, share: float) -> None:
        """A call answered, after ``share`` of the time that it might have taken."""
        with self._lock:
            self._failures = 0
        self._note(share > SLOW, f"most answers take over {SLOW:.0%} of the time they may take")

    def failed(self, reason: str) -> None:
        """A call failed or was too late."""
        with self._lock:
            self._failures += 1
        self._note(True, reason)

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
            if self._failures < _FAILURES and sum(self._slow) <= _MOST_SLOW:
                return
            self._turn(closed=False)
        self._on_open(reason)

    def _turn(self, closed: bool) -> None:
        self._closed = closed
        self._since = time.time()
        self._failures = 0
        self._slow.clear()
        self._changed.notify_all()

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or not self._closed)
                if self._stopping:
                    return
            try:
                self._probe()
            except Exception as error:
                self._on_refusal(str(error))
                # Replicas that lost the store at the same time do not come back as one.
                wait = random.uniform(0.5, 1) * pause  # noqa: S311 (no secret)
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping, wait)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            pause = _FIRST_PAUSE
            with self._changed:
                if self._stopping:
                    return
                self._turn(closed=True)
            self._on_close()
