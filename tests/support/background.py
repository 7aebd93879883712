"""An action that goes on in a thread of its own while a test does something else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def repeating(action: Callable[[], object], pause: float = 0.0) -> Iterator[None]:
    """Call ``action`` again and again, with ``pause`` seconds before each call.

    Raises:
        Exception: at the end of the ``with``, the one that ended the calls.
    """
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(pause):
            action()

    with ThreadPoolExecutor(1) as pool:
        calls = pool.submit(repeat)
        try:
            yield
        finally:
            over.set()
        calls.result()
