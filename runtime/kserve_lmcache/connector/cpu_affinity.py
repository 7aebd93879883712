"""Where the threads of LMCache and of its tiers run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def every_core(device: str) -> Iterator[None]:
    """On a CPU, threads that are started here may run wherever this process's parent may.

    OpenMP binds a thread that computes to one core (vLLM gives its workers on a CPU
    ``GOMP_CPU_AFFINITY`` or the like), and the threads that it starts inherit that: they would
    take turns with the computation on that core, whatever others are idle. Beside an accelerator
    nothing is changed; a worker may be bound to the cores that are next to it.

    Args:
        device: its type, of vLLM's configuration.
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
