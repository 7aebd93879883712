"""The cores on which threads of LMCache and of its tiers run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def use_all_cores(device: str) -> Iterator[None]:
    """On a CPU, let threads that start in the block run on every core of the parent process.

    OpenMP binds a thread that computes to one core (vLLM gives its workers on a CPU
    ``GOMP_CPU_AFFINITY`` or the like), and threads that it starts inherit the binding. They would
    share this core with the computation while other cores are idle. Beside an accelerator nothing
    changes: a worker may be bound to the cores that are next to the accelerator.

    Args:
        device: the type of vLLM's device.
    """
    if device != "cpu":
        yield
        return
    bound = os.sched_getaffinity(0)
    os.sched_setaffinity(0, bound | os.sched_getaffinity(os.getppid()))
    try:
        yield
    finally:
        os.sched_setaffinity(0, bound)
