"""Imports vLLM in less time, and ends without it in less time.

Its modules make objects that stay. Python looks for garbage among them again and again while they
are made (``benchmarks/start_up.py`` shows the time), and several times when a process ends.
"""

from __future__ import annotations

import atexit
import gc

# Python's own are some hundred new objects, and some ten times those.
_RARELY = (200_000, 100, 1_000)
_USUAL = gc.get_threshold()


def begin() -> None:
    """Look for garbage rarely. A process that does not call :func:`end` needs more memory."""
    gc.set_threshold(*_RARELY)


def end() -> None:
    """Look for garbage as usual, and not among what was imported, at the end neither."""
    gc.freeze()
    atexit.register(gc.freeze)  # vLLM unfreezes before its processes end
    gc.set_threshold(*_USUAL)
