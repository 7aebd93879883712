"""Runs the calls to a store with deadlines that hold even when the store's client hangs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from kserve_lmcache.tiers.guard.daemon_threads import DaemonThreadPool
from kserve_lmcache.tiers.guard.store import Store, StoreError, StoreTimeoutError

T = TypeVar("T")

# No new thread is started while this many hang in the store, each with a connection.
_MAX_HANGING = 3


class DeadlineExecutor:
    """Runs one kind of call in a thread with a client of its own.

    A call that misses its deadline is abandoned together with its thread and its client. The
    next call gets a new thread and a new client.

    Args:
        name: of the thread.
        make_store: makes the client, in the thread.
    """

    def __init__(self, name: str, make_store: Callable[[], Store]) -> None:
        self._name = name
        self._make_store = make_store
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._retired: list[_Worker] = []
        self._closed = False

    def call(self, operation: Callable[[Store], T], seconds: float) -> T:
        """Runs ``operation`` with the client.

        Raises:
            StoreTimeoutError: the operation missed the deadline. It may still be running.
            StoreError: the operation failed, or too many earlier calls hang.
        """
        worker, future = self._submit(operation)
        if wait([future], seconds).done:
            return future.result()
        if future.cancel():  # an earlier call was still running
            raise StoreTimeoutError(f"busy for {seconds:g} s")
        self._retire(worker)
        if worker.store is not None:
            with contextlib.suppress(Exception):  # the thread is abandoned anyway
                worker.store.abort()
        raise StoreTimeoutError(f"no answer within {seconds:g} s")

    def renew(self) -> None:
        """Ends the thread and its client after the current call. The next call gets new ones."""
        if (worker := self._worker) is not None:
            self._retire(worker)

    def close(self) -> None:
        """Ends the thread and its client after the current call. Later calls fail."""
        with self._lock:
            self._closed = True
        self.renew()

    def _submit(self, operation: Callable[[Store], T]) -> tuple[_Worker, Future[T]]:
        with self._lock:
            if self._closed:
                raise StoreError("the tier is closed")
            if self._worker is None:
                self._retired = [worker for worker in self._retired if worker.is_alive]
                if len(self._retired) >= _MAX_HANGING:
                    raise StoreError(f"{len(self._retired)} earlier calls still hang")
                self._worker = _Worker(self._name, self._make_store)
            return self._worker, self._worker.submit(self._worker.run, operation)

    def _retire(self, worker: _Worker) -> None:
        with self._lock:
            if self._worker is worker:
                self._worker = None
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
