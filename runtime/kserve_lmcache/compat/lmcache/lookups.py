"""Lookups that nobody waits for (LMCache 0.5.1 to 0.5.6).

The scheduler's process asks LMCache's lookup server in every worker, within a step of the engine.
The server has one thread, and asks every tier before it answers. Here it answers at once what the
local CPU tier knows. Where other tiers have to be asked, it asks them in the background and answers
that the lookup is pending; the scheduler asks again in its next step.

``tests/integration/test_lmcache_lookups.py`` fails when an upgrade changes one of the internals.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmcache.integration.vllm.vllm_v1_adapter import LMCacheConnectorV1Impl

_LOCAL = "LocalCPUBackend"
# LMCache's answer is a number of tokens in four bytes, without a sign.
_PENDING = 2**32 - 1


class LookupPending(Exception):
    """A lookup that has no result yet."""


@dataclass
class _Lookup:
    future: Future[int]
    began: float


class WorkerLookups:
    """Takes the place of LMCache's ``lookup`` and ``lookup_unpin`` in a worker.

    Args:
        adapter: the worker's.
        pool: runs the lookups of all tiers.
        on_lookup: takes the number of chunks that were looked up and the number of them that the
            local CPU tier has.
        on_error: takes the name of the call that failed and the exception. A lookup that fails is
            a miss: LMCache's server would not answer, and the scheduler would wait.
    """

    def __init__(
        self,
        adapter: LMCacheConnectorV1Impl,
        pool: Executor,
        on_lookup: Callable[[int, int], None],
        on_error: Callable[[str, Exception], None],
    ) -> None:
        self._engine = engine = adapter.lmcache_engine
        self._pool = pool
        self._on_lookup = on_lookup
        self._on_error = on_error
        self._timeout = adapter.config.lookup_timeout_ms / 1000
        self._lock = threading.Lock()
        self._running: dict[str, _Lookup] = {}
        self._lookup, self._unpin = engine.lookup, engine.lookup_unpin
        engine.lookup, engine.lookup_unpin = self.lookup, self.unpin

    def lookup(
        self, hashes: Sequence[int], offsets: Sequence[int], lookup_id: str, **options: Any
    ) -> int:
        """The number of tokens that are found, or that the lookup is pending.

        LMCache's lookup server calls this, and nobody else.

        Args:
            hashes: of the chunks; empty when it is asked again about a pending lookup.
            offsets: tokens in each chunk.
            lookup_id: the request.
            options: other arguments of LMCache's.
        """
        arguments = {"hashes": hashes, "offsets": offsets, "lookup_id": lookup_id, **options}
        try:
            with self._lock:
                running = self._running.get(lookup_id)
            if running is None:
                return self._begin(arguments) if hashes else 0
            if not running.future.done():
                if time.monotonic() - running.began < self._timeout:
                    return _PENDING
                self.unpin(lookup_id)
                raise TimeoutError(f"no tier answered a lookup within {self._timeout:g} s")
            with self._lock:
                self._running.pop(lookup_id, None)
            return running.future.result()
        except Exception as error:
            self._on_error("lookup", error)
            return 0

    def unpin(self, lookup_id: str) -> None:
        """Unpin what a lookup found, as soon as it has ended. Any thread calls this."""
        with self._lock:
            running = self._running.pop(lookup_id, None)
        if running is None:
            self._unpin(lookup_id)
        else:
            running.future.add_done_callback(lambda _: self._unpin(lookup_id))

    def _begin(self, arguments: dict[str, Any]) -> int:
        backends = self._engine.storage_manager.storage_backends
        others = [name for name in backends if name != _LOCAL]
        if not others:
            return self._look_up(arguments)
        lookup_id = arguments["lookup_id"]
        if _LOCAL in (self._engine.retrieve_locations or backends):
            found = int(self._lookup(**arguments, search_range=[_LOCAL]))
            if found == sum(arguments["offsets"]):
                self._count(arguments)
                return found
            self._unpin(lookup_id)
        with self._lock:
            future = self._pool.submit(self._look_up, arguments)
            self._running[lookup_id] = _Lookup(future, time.monotonic())
        return _PENDING

    def _look_up(self, arguments: dict[str, Any]) -> int:
        found = int(self._lookup(**arguments))
        self._count(arguments)
        return found

    def _count(self, arguments: dict[str, Any]) -> None:
        pinned = self._engine.lookup_pins.get(arguments["lookup_id"], {})
        self._on_lookup(len(arguments["hashes"]), len(pinned.get(_LOCAL, ())))


def lookup_client_of(adapter: LMCacheConnectorV1Impl) -> Any:
    """LMCache's lookup client in the scheduler's process, without what is wrapped around it."""
    client: Any = adapter.lookup_client
    while (inner := getattr(client, "actual_lookup_client", None)) is not None:
        client = inner
    return client


class SchedulerLookups:
    """Takes the place of ``lookup`` of LMCache's lookup client in the scheduler's process.

    Other clients than the one that asks the workers (``external_lookup_client`` and the like)
    stay as they are.

    Args:
        adapter: the scheduler's.
        on_hashes: takes a request and the hashes of its chunks, before the workers are asked.
    """

    def __init__(
        self,
        adapter: LMCacheConnectorV1Impl,
        on_hashes: Callable[[str, Sequence[int]], None] = lambda lookup_id, hashes: None,
    ) -> None:
        self._on_hashes = on_hashes
        self._results: dict[str, list[int]] = {}
        client = lookup_client_of(adapter)
        if hasattr(client, "transport"):
            self._client, self._transport = client, client.transport
            self._lookup = client.lookup
            client.lookup, client.transport = self.lookup, self

    def __getattr__(self, name: str) -> Any:
        """What LMCache uses of its transport beside :meth:`send_and_recv_all`."""
        return getattr(self.__dict__["_transport"], name)

    def lookup(
        self, token_ids: Any, lookup_id: str, request_configs: dict[str, Any] | None = None
    ) -> int | None:
        """The number of tokens that are found.

        Raises:
            LookupPending: it is not known yet.
        """
        if lookup_id not in self._results:
            found: int | None = self._lookup(token_ids, lookup_id, request_configs)
            return found
        # Without the tokens, whose hashes took long enough to compute once.
        responses = self.send_and_recv_all([[], [], lookup_id, ""])
        found = min((int.from_bytes(each, "big") for each in responses), default=0)
        self._client.reqs_status[lookup_id] = found
        return found

    def send_and_recv_all(self, message: list[Any]) -> list[bytes]:
        """Ask all workers.

        Raises:
            LookupPending: the lookup is pending in a worker. A worker's result is kept.
        """
        hashes, _, lookup_id, _ = message
        if hashes:
            self._on_hashes(lookup_id, hashes)
        known = self._results.pop(lookup_id, None)
        results = [
            int.from_bytes(each, "big") for each in self._transport.send_and_recv_all(message)
        ]
        if known is not None:
            results = [
                new if old == _PENDING else old for old, new in zip(known, results, strict=False)
            ]
        if _PENDING in results:
            self._results[lookup_id] = results
            raise LookupPending(lookup_id)
        return [each.to_bytes(4, "big") for each in results]

    def forget(self, lookup_id: str) -> None:
        """Forget a request, whose lookup may be pending."""
        self._results.pop(lookup_id, None)
