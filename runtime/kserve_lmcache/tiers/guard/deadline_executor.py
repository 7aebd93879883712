"""Calls of a store that never take longer than they may."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any, TypeVar

from kserve_lmcache.tiers.guard.store import Store, StoreError, StoreTimeoutError

T = TypeVar("T")
Job = tuple[Callable[[Store], Any], "Future[Any]"]

# Threads that hang in a store, each holding a connection; no more are started beside them.
_MOST_ABANDONED = 3


class DeadlineExecutor:
    """A thread with a client of its own for one kind of call.

    A call that takes too long is abandoned together with its thread and its client, however it
    hangs; the next call gets new ones. Lanes do not wait for each other: a long write delays no
    lookup.

    Args:
        name: of the thread.
        make_store: makes the client, in the thread.
    """

    def __init__(self, name: str, make_store: Callable[[], Store]) -> None:
        self._name = name
        self._make_store = make_store
        self._lock = threading.Lock()
        self._runner: _Runner | None = None
        self._abandoned: list[_Runner] = []
        self._closed = False

    def call(self, operation: Callable[[Store], T], seconds: float) -> T:
        """Run ``operation`` with the store.

        Raises:
            StoreTimeoutError: it is not done after ``seconds``; it may still be running.
            StoreError: it failed, or too many calls hang already.
        """
        runner = self._take()
        future: Future[T] = Future()
        runner.jobs.put((operation, future))
        if wait([future], seconds).done:
            return future.result()
        if future.cancel():  # an earlier call was still running
            raise StoreTimeoutError(f"busy for {seconds:g} s")
        self._abandon(runner)
        raise StoreTimeoutError(f"no answer within {seconds:g} s")

    def renew(self) -> None:
        """Let the thread and its client end after what they do; the next call gets new ones."""
        with self._lock:
            runner, self._runner = self._runner, None
            if runner is not None:
                self._abandoned.append(runner)  # it may hang
        if runner is not None:
            runner.stop()

    def close(self) -> None:
        """Let the thread end after what it is doing."""
        with self._lock:
            self._closed = True
        self.renew()

    def _take(self) -> _Runner:
        with self._lock:
            if self._closed:
                raise StoreError("the tier is closed")
            if self._runner is None:
                self._abandoned = [each for each in self._abandoned if each.is_alive()]
                if len(self._abandoned) >= _MOST_ABANDONED:
                    raise StoreError(f"{len(self._abandoned)} earlier calls still hang")
                self._runner = _Runner(self._name, self._make_store)
            return self._runner

    def _abandon(self, runner: _Runner) -> None:
        with self._lock:
            if self._runner is runner:
                self._runner = None
                self._abandoned.append(runner)
        runner.abandon()


class _Runner:
    def __init__(self, name: str, make_store: Callable[[], Store]) -> None:
        self.jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._make_store = make_store
        self._store: Store | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        self.jobs.put(None)

    def abandon(self) -> None:
        self.stop()
        store = self._store
        if store is not None:
            # Whatever goes wrong there, its thread is on its own.
            with contextlib.suppress(Exception):
                store.abort()

    def _run(self) -> None:
        while (job := self.jobs.get()) is not None:
            operation, future = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                if self._store is None:
                    self._store = self._make_store()
                future.set_result(operation(self._store))
            except BaseException as error:
                future.set_exception(error)
            del operation, future, job  # an idle thread holds nobody's memory
        if self._store is not None:
            with contextlib.suppress(Exception):
                self._store.close()
