"""Waiting for what happens by itself."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(done: Callable[[], bool], seconds: float = 10, pause: float = 0.01) -> float:
    """Ask every ``pause`` seconds until it is so; how many seconds that took."""
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < seconds, f"it did not happen in {seconds:g} s"
        time.sleep(pause)
    return time.monotonic() - began
