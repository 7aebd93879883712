"""Many requests that wait for a slow tier do not make the cache server look dead."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kserve_lmcache import __version__
from kserve_lmcache.cache_server import rpc
from kserve_lmcache.cache_server.announcement import Announcement, announce
from kserve_lmcache.cache_server.messages import Proofs, Welcome
from kserve_lmcache.cache_server.service import Service
from kserve_lmcache.compat.lmcache.storage import Storage
from kserve_lmcache.connector.multiprocess import scheduler_cache as module
from kserve_lmcache.connector.multiprocess.scheduler_cache import MultiprocessSchedulerCache
from kserve_lmcache.connector.multiprocess.settings import Settings
from kserve_lmcache.metrics.table import metric
from tests.support.waiting import until

CHUNK = 32
CROWD = 150
TOKENS = 2 * CHUNK
TIMES = ("opened_total", "failures_total")


class SlowStorage:
    """Has nothing in its memory, and a tier below that has everything, one fetch at a time."""

    has_tiers = True
    reservation_seconds = 60

    def __init__(self) -> None:
        self.seconds = 0.02  # of a fetch
        self.answers = threading.Event()
        self.answers.set()
        self.most = 0  # calls that waited at a time
        self._waiting = 0
        self._changed = threading.Condition()
        self._ends: list[float] = []

    def find(self, rows: Any, digests: Sequence[bytes]) -> int:
        assert self.answers.wait(30)
        return 0

    def fetch(self, rows: Any, digests: Sequence[bytes], first: int) -> int:
        with self._changed:
            began = max([time.monotonic(), *self._ends[-1:]])
            self._ends.append(began + self.seconds)
            return len(self._ends) - 1

    def fetched(self, handle: int, seconds: float) -> int | None:
        with self._changed:
            self._waiting += 1
            self.most = max(self.most, self._waiting)
            end = time.monotonic() + seconds
            while (left := min(end, self._ends[handle]) - time.monotonic()) > 0:
                self._changed.wait(left)
            self._waiting -= 1
            return 2 if time.monotonic() >= self._ends[handle] else None


@pytest.fixture
def storage() -> SlowStorage:
    return SlowStorage()


@pytest.fixture
def cache(
    storage: SlowStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MultiprocessSchedulerCache]:
    welcome = Welcome("incarnation", "segment", 2**20, CHUNK, 2.05)
    service = Service(
        cast(Storage, storage), welcome, lambda _: {}, lambda _: None, lambda: Proofs({})
    )
    server = rpc.serve(tmp_path / "socket", service.handlers)
    announce(tmp_path, Announcement("incarnation", "socket", 0, __version__))
    settings = Settings(tmp_path, {"chunk_size": CHUNK}, "namespace", 16)
    monkeypatch.setattr(Settings, "of", lambda *_: settings)
    # The machine of a test may be slow.
    monkeypatch.setattr(module, "_LOOKUP_SECONDS", 5.0)
    cache = MultiprocessSchedulerCache(cast(Any, None), cast(Any, None))
    cache.set_workers([{"form": {"name": "form", "object_bytes": 4096}}])
    until(lambda: cache._session.connection is not None)
    yield cache
    cache.stop()
    storage.answers.set()
    server.stop(None).wait()


def request(number: int) -> Any:
    tokens = [number] * (TOKENS + 1)
    return SimpleNamespace(
        request_id=str(number), num_tokens=len(tokens), all_token_ids=tokens, sampling_params=None
    )


def failures() -> list[float]:
    return [metric(name, tier="local_cpu").value() for name in TIMES]


def test_every_request_of_a_crowd_has_its_answer(
    cache: MultiprocessSchedulerCache, storage: SlowStorage
) -> None:
    before, waiting, found = failures(), [request(number) for number in range(CROWD)], []
    until(lambda: not answered(cache, waiting, found), seconds=30)
    assert found == [TOKENS] * CROWD
    assert failures() == before
    assert storage.most <= module._CALLS


def answered(cache: MultiprocessSchedulerCache, waiting: list[Any], found: list[int]) -> list[Any]:
    """Ask for all that wait, as vLLM does in each step; returns those that still wait."""
    for each in [*waiting]:
        if (tokens := cache.look_up(each, 0)) is not None:
            found.append(tokens)
            waiting.remove(each)
    return waiting


def test_no_more_lookups_are_sent_than_are_answered_in_time(
    cache: MultiprocessSchedulerCache, storage: SlowStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, begin = [], cache._session.begin
    monkeypatch.setattr(
        cache._session, "begin", lambda *call: (sent.append(call[1]), begin(*call))[1]
    )
    storage.answers.clear()
    waiting = [request(number) for number in range(CROWD)]
    assert len(answered(cache, waiting, [])) == CROWD
    assert sent == ["lookup"] * module._CALLS


def test_requests_that_are_aborted_say_nothing_about_the_server(
    cache: MultiprocessSchedulerCache, storage: SlowStorage
) -> None:
    before, storage.seconds = failures(), 0.3
    aborted = [request(number) for number in range(2 * module._CALLS)]
    until(lambda: all(answered(cache, aborted, [])) and storage.most > 8)
    for each in aborted:
        cache.forget(each.request_id, hidden=False)
    free = cache._free_calls.values()
    until(lambda: all(kind._value == module._CALLS for kind in free))
    assert failures() == before
    assert cache._session.connection is not None
