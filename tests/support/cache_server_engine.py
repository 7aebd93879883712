"""A simulated engine beside a cache server: what it is asked, and what is loaded for it."""

from __future__ import annotations

from typing import Any

from kserve_lmcache.connector.multiprocess.scheduler_cache import MultiprocessSchedulerCache
from kserve_lmcache.connector.multiprocess.worker_cache import MultiprocessWorkerCache
from tests.support.simulated_engine import BLOCK, CHUNK, SimulatedEngine, continuation
from tests.support.waiting import until

CHUNKS = 6  # of a prompt


def connected(engine: SimulatedEngine) -> None:
    until(lambda: all(cache._session.connection is not None for cache in caches(engine)))


def caches(engine: SimulatedEngine) -> tuple[MultiprocessSchedulerCache, MultiprocessWorkerCache]:
    scheduler, worker = engine.parts
    assert isinstance(scheduler._cache, MultiprocessSchedulerCache)
    assert isinstance(worker._cache, MultiprocessWorkerCache)
    return scheduler._cache, worker._cache


def prompt(number: int, chunks: int = CHUNKS, more: int = 5) -> list[int]:
    return [(number * 37 + place * 11 + place // 7) % 250 for place in range(chunks * CHUNK + more)]


class Asked:
    """Requests, whose answers are right, and the tokens that were loaded for them."""

    def __init__(self, engine: SimulatedEngine) -> None:
        self.engine = engine

    def __call__(self, tokens: list[int], **options: Any) -> int:
        """Ask, when vLLM's own cache has nothing; returns the number of tokens that were loaded."""
        engine = self.engine
        engine.forget_local()
        before, failed = engine.hits, engine.failed
        name = f"request {len(engine.said)}"
        assert engine.ask(name, tokens, **options) == continuation(tokens, 4)
        engine.failed, lost = failed, engine.failed - failed
        return engine.hits - before - lost * BLOCK


def stored(engine: SimulatedEngine, number: int, chunks: int = CHUNKS, **options: Any) -> list[int]:
    """A prompt that the server has, all of it.

    A save becomes visible in the background. A step that has no answer in time stores nothing, so
    one request may not be enough.
    """
    tokens, ask = prompt(number, chunks), Asked(engine)
    assert ask(tokens, **options) == 0
    until(lambda: ask(tokens, **options) == chunks * CHUNK)
    return tokens
