"""Load queue: a worker's loads, which run in threads beside the engine's steps."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

from kserve_lmcache.connector.cpu_affinity import use_all_cores
from kserve_lmcache.connector.metadata import Load
from kserve_lmcache.tiers.guard.daemon_threads import DaemonThreadPool

# Loads run the given callable and return the blocks that are missing.
Run = Callable[[], Collection[int]]


@dataclass(frozen=True)
class Ended:
    """A load that has ended, and those of its blocks that are not loaded."""

    load: Load
    missing: Collection[int]


@dataclass(frozen=True)
class _Job:
    load: Load
    size: int
    run: Run


class LoadQueue:
    """Runs loads in the order in which they come, a few at a time.

    Args:
        threads: the number of loads that run at a time.
        max_bytes: bytes of the loads that run at a time. A larger load runs alone.
        device: the type of vLLM's device.
    """

    def __init__(self, threads: int, max_bytes: int, device: str) -> None:
        self._max_bytes = max_bytes
        self._device = device
        self._pool = DaemonThreadPool("kv-load", threads)
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._running = 0
        self._running_bytes = 0
        self._ended: list[Ended] = []

    def add(self, load: Load, size: int, run: Run) -> None:
        """Queue a load.

        Args:
            load: whose blocks are all missing if ``run`` raises.
            size: bytes.
            run: loads, in a thread of the queue.

        Raises:
            RuntimeError: the queue has been closed.
        """
        with use_all_cores(self._device), self._changed:
            self._pool.submit(self._run_next)
            self._waiting.append(_Job(load, size, run))

    def cancel(self, requests: Collection[str]) -> list[str]:
        """End the loads of ``requests`` that have not begun; returns whose these are."""
        with self._changed:
            cancelled = [job for job in self._waiting if job.load.request_id in requests]
            for job in cancelled:
                self._waiting.remove(job)
                self._ended.append(Ended(job.load, job.load.blocks))
            self._changed.notify_all()
        return [job.load.request_id for job in cancelled]

    def take_ended(self) -> list[Ended]:
        """The loads that have ended since the last call."""
        with self._changed:
            ended, self._ended = self._ended, []
            return ended

    def wait(self, seconds: float) -> None:
        """Wait until a load ends, unless there is none, for ``seconds`` seconds at most."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._ended or not (self._running or self._waiting), seconds
            )

    def close(self, seconds: float) -> None:
        """End the loads that have not begun, and wait for the others.

        Args:
            seconds: to wait at most.
        """
        self.cancel([job.load.request_id for job in tuple(self._waiting)])
        self._pool.shutdown(wait=False)
        with self._changed:
            self._changed.wait_for(lambda: not self._running, seconds)

    def _run_next(self) -> None:
        with self._changed:
            self._changed.wait_for(self._admits_next)
            if not self._waiting:  # it was cancelled
                return
            job = self._waiting.popleft()
            self._running += 1
            self._running_bytes += job.size
        missing: Collection[int] = job.load.blocks
        try:
            missing = job.run()
        finally:
            with self._changed:
                self._running -= 1
                self._running_bytes -= job.size
                self._ended.append(Ended(job.load, missing))
                self._changed.notify_all()

    def _admits_next(self) -> bool:
        if not self._waiting or not self._running:
            return True
        return self._running_bytes + self._waiting[0].size <= self._max_bytes
