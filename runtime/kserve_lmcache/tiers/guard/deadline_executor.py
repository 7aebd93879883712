"""Runs the calls to a store with deadlines that hold even when the store's client hangs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from kserve_lmcache.tiers.guard.daemon_threads import DaemonThreadPool
from kserve_lmcache.tiers.guard.store import Store, StoreError, StoreTimeoutError

T = TypeVar("T")

# No new thread is started while this many hang in the store, each with a connection.
_MAX_HANGING = 3


class DeadlineExecutor:
    """Runs one kind of call in threads, each with a client of its own.

    A call that misses its deadline is abandoned together with its thread and its client. The
    next call gets a new thread and a new client.

    Args:
        name: of the threads.
        make_store: makes a client, in its thread.
        threads: the number of calls that run at a time; further calls wait for one to end.
    """

    def __init__(self, name: str, make_store: Callable[[], Store], threads: int = 1) -> None:
        self._name = name
        self._make_store = make_store
        self._threads = threads
        self._slots = threading.Semaphore(threads)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._retired: list[_Worker] = []
        self._closed = False

    def call(self, operation: Callable[[Store], T], seconds: float) -> T:
        """Runs ``operation`` with a client.

        Raises:
            StoreTimeoutError: the operation missed the deadline. It may still be running.
            StoreError: the operation failed, or too many earlier calls hang.
        """
        deadline, slots = time.monotonic() + seconds, self._slots
        if not slots.acquire(timeout=seconds):
            raise StoreTimeoutError(f"busy for {seconds:g} s")
        try:
            worker = self._take()
            future: Future[T] = worker.submit(worker.run, operation)
            if wait([future], max(0, deadline - time.monotonic())).done:
                self._give_back(worker)
                return future.result()
        finally:
            slots.release()
        self._retire(worker)
        if worker.store is not None:
            with contextlib.suppress(Exception):  # the thread is abandoned anyway
                worker.store.abort()
        raise StoreTimeoutError(f"no answer within {seconds:g} s")

    def renew(self) -> None:
        """Ends the threads and their clients after the current calls. Later calls get new ones."""
        with self._lock:
            workers = [*self._idle, *self._busy]
            self._slots = threading.Semaphore(self._threads)
        for worker in workers:
            self._retire(worker)

    def close(self) -> None:
        """Ends the threads and their clients after the current calls. Later calls fail."""
        with self._lock:
            self._closed = True
        self.renew()

    def _take(self) -> _Worker:
        with self._lock:
            if self._closed:
                raise StoreError("the tier is closed")
            if not self._idle:
                self._retired = [worker for worker in self._retired if worker.is_alive]
                if len(self._retired) >= _MAX_HANGING:
                    raise StoreError(f"{len(self._retired)} earlier calls still hang")
                self._idle.append(_Worker(self._name, self._make_store))
            worker = self._idle.pop()
            self._busy.add(worker)
            return worker

    def _give_back(self, worker: _Worker) -> None:
        with self._lock:
            if worker in self._busy:  # it was not retired meanwhile
                self._busy.remove(worker)
                self._idle.append(worker)

    def _retire(self, worker: _Worker) -> None:
        with self._lock:
            if worker in self._idle:
                self._idle.remove(worker)
            elif worker in self._busy:
                self._busy.remove(worker)
            else:
                return
            self._retired.append(worker)
            worker.submit(worker.close)
            worker.shutdown(wait=False)


class _Worker(DaemonThreadPool):
    """A thread and its client."""

    def __init__(self, name: str, make_store: Callable[[], Store]) -> None:
        super().__init__(name, 1)
        self.store: Store | None = None
        self._make_store = make_store

    def run(self, operation: Callable[[Store], T]) -> T:
        if self.store is None:
            self.store = self._make_store()
        return operation(self.store)

    def close(self) -> None:
        if self.store is not None:
            self.store.close()
