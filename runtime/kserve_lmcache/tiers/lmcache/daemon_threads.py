"""Threads for an event loop's blocking calls, which may hang for ever without harm."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

Job = tuple["Future[Any]", Callable[[], Any]]


class DaemonThreads(ThreadPoolExecutor):
    """An executor whose threads hold up no exit: Python joins those of its own executors.

    It is one of them by type alone, which asyncio asks for.

    Args:
        name: of the threads.
        most: threads at a time.
    """

    def __init__(self, name: str, most: int) -> None:
        super().__init__(most, name)
        self._name = name
        self._most = most
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._daemons: list[threading.Thread] = []
        self._closed = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run ``fn`` in one of the threads.

        Raises:
            RuntimeError: the executor was shut down.
        """
        future: Future[Any] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("no more work is taken")
            self._jobs.put((future, lambda: fn(*args, **kwargs)))
            if not self._idle.acquire(blocking=False) and len(self._daemons) < self._most:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._daemons.append(thread)
                thread.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads after what was submitted.

        Args:
            wait: until they have ended, however long that takes.
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
            del future, call, job  # an idle thread holds nobody's memory
            self._idle.release()
