"""The deadline executor: calls end at their deadline, whatever the client does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from kserve_lmcache.tiers.guard.deadline_executor import DeadlineExecutor
from kserve_lmcache.tiers.guard.store import StoreError, StoreTimeoutError
from tests.support.tiers import threads
from tests.support.waiting import until


class FakeStore:
    """A client that records whether it was aborted and closed."""

    def __init__(self) -> None:
        self.aborted = threading.Event()
        self.closed = threading.Event()

    def abort(self) -> None:
        self.aborted.set()

    def close(self) -> None:
        self.closed.set()


class Stores:
    def __init__(self) -> None:
        self.made: list[FakeStore] = []

    def __call__(self) -> FakeStore:
        self.made.append(FakeStore())
        return self.made[-1]


def executor_of(stores: Callable[[], FakeStore]) -> DeadlineExecutor:
    return DeadlineExecutor("test", stores)  # type: ignore[arg-type]


def test_a_call_that_misses_its_deadline_is_abandoned_with_its_client() -> None:
    stores = Stores()
    executor = executor_of(stores)
    assert executor.call(lambda store: "answer", 5) == "answer"
    began = time.monotonic()
    with pytest.raises(StoreTimeoutError, match=r"no answer within 0.05 s"):
        executor.call(lambda store: store.aborted.wait(5), 0.05)
    assert time.monotonic() - began < 1
    assert executor.call(lambda store: "new", 5) == "new"
    assert len(stores.made) == 2
    assert stores.made[0].closed.wait(5)
    executor.close()
    until(lambda: threads("test") == 0)


def test_at_most_three_threads_hang() -> None:
    release = threading.Event()
    executor = executor_of(Stores())
    for _ in range(3):
        with pytest.raises(StoreTimeoutError):
            executor.call(lambda store: release.wait(20), 0.01)
    with pytest.raises(StoreError, match="3 earlier calls still hang"):
        executor.call(lambda store: "never", 1)
    assert threads("test") == 3
    release.set()
    until(lambda: threads("test") == 0)
    assert executor.call(lambda store: "again", 5) == "again"
    executor.close()


def test_a_call_behind_a_long_one_keeps_its_deadline() -> None:
    release = threading.Event()
    executor = executor_of(Stores())
    first = threading.Thread(target=lambda: executor.call(lambda store: release.wait(20), 20))
    first.start()
    until(lambda: threads("test") == 1)
    with pytest.raises(StoreTimeoutError, match="busy"):
        executor.call(lambda store: "second", 0.05)
    release.set()
    first.join()
    assert executor.call(lambda store: "third", 5) == "third"
    executor.close()
    with pytest.raises(StoreError, match="closed"):
        executor.call(lambda store: "fourth", 1)


def test_a_renewed_executor_has_a_new_client_and_still_counts_hanging_threads() -> None:
    stores, release = Stores(), threading.Event()
    executor = executor_of(stores)
    for number in range(2):
        assert executor.call(lambda store: "answer", 5) == "answer"
        assert len(stores.made) == number + 1
        executor.renew()
        assert stores.made[number].closed.wait(5)
    for _ in range(3):
        hanging = threading.Thread(
            target=lambda: executor.call(lambda store: release.wait(20), 20), daemon=True
        )
        hanging.start()
        until(lambda: executor._busy)
        executor.renew()
    with pytest.raises(StoreError, match="3 earlier calls still hang"):
        executor.call(lambda store: "never", 1)
    release.set()
    until(lambda: threads("test") == 0)
    executor.close()


def test_calls_overlap_up_to_the_number_of_threads() -> None:
    stores = Stores()
    executor = DeadlineExecutor("test", stores, threads=2)  # type: ignore[arg-type]
    both = threading.Barrier(2)
    with ThreadPoolExecutor(2) as callers:
        calls = [callers.submit(executor.call, lambda store: both.wait(5), 5) for _ in range(2)]
        assert sorted(call.result() for call in calls) == [0, 1]
    assert len(stores.made) == 2
    release = threading.Event()
    with ThreadPoolExecutor(2) as callers:
        calls = [callers.submit(executor.call, lambda store: release.wait(5), 5) for _ in range(2)]
        until(lambda: len(executor._busy) == 2)
        with pytest.raises(StoreTimeoutError, match=r"busy for 0.05 s"):
            executor.call(lambda store: "third", 0.05)
        release.set()
        assert all(call.result() for call in calls)
    assert len(stores.made) == 2  # a call that waited in vain costs no client
    executor.close()
    until(lambda: threads("test") == 0)
