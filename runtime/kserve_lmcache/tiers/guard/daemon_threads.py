"""Threads that may hang forever without blocking the exit of the process, or never end too soon."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

Job = tuple["Future[Any]", Callable[[], Any]]
_RESTART_SECONDS = 1.0  # after an exception; a loop that fails at once must not take a core


def start_supervised(
    name: str, run: Callable[[], None], on_exception: Callable[[Exception], None]
) -> threading.Thread:
    """Start a daemon thread that runs a loop until the loop returns.

    A loop that raises is begun anew. Its thread would end for good otherwise, and nobody would see.

    Args:
        name: of the thread.
        run: the loop.
        on_exception: called with what the loop raised.
    """

    def supervise() -> None:
        while True:
            try:
                run()
                return
            except Exception as error:
                with contextlib.suppress(Exception):
                    on_exception(error)
                time.sleep(_RESTART_SECONDS)

    thread = threading.Thread(target=supervise, name=name, daemon=True)
    thread.start()
    return thread


class DaemonThreadPool(ThreadPoolExecutor):
    """A pool of daemon threads. Python joins the threads of its own pools at exit.

    The base class serves as a type only: asyncio demands it of a default executor.

    Args:
        name: of the threads.
        max_threads: started at most.
    """

    def __init__(self, name: str, max_threads: int) -> None:
        super().__init__(max_threads, name)
        self._name = name
        self._max_threads = max_threads
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._daemons: list[threading.Thread] = []
        self._closed = False

    @property
    def is_alive(self) -> bool:
        """Whether a thread is still running."""
        return any(thread.is_alive() for thread in self._daemons)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Runs ``fn`` in one of the threads.

        Raises:
            RuntimeError: the pool has been shut down.
        """
        future: Future[Any] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool has been shut down")
            self._jobs.put((future, lambda: fn(*args, **kwargs)))
            if not self._idle.acquire(blocking=False) and len(self._daemons) < self._max_threads:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._daemons.append(thread)
                thread.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the threads after the submitted jobs.

        Args:
            wait: until the threads have ended, however long that takes.
            cancel_futures: has no effect.
        """
        with self._lock:
            self._closed = True
        for _ in self._daemons:
            self._jobs.put(None)
        if wait:
            for thread in self._daemons:
                thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, call = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            del future, call, job  # an idle thread must not keep memory alive
            self._idle.release()
