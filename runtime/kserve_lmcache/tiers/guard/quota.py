"""The share of a store that one tenant may fill."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from kserve_lmcache.identity import tag as tags
from kserve_lmcache.identity.tag import EVERYTHING, Selection
from kserve_lmcache.tiers.guard.counters import Counters
from kserve_lmcache.tiers.guard.daemon_threads import start_supervised
from kserve_lmcache.tiers.guard.steering import Steering
from kserve_lmcache.tiers.guard.store import StoreError

logger = logging.getLogger(__name__)

_PAUSE = 10.0  # seconds between two counts
_PAUSE_FACTOR = 50  # the same as a multiple of a count's duration, for stores with many keys
_LEFT = 0.9  # of the quota, after a tenant's oldest chunks were deleted


class StoreQuota:
    """Refuses chunks of tenants that have filled their share, and deletes their oldest chunks.

    The store is counted every ten seconds or more, since replicas share it and nobody tells what
    expires there. In between, this worker counts what it stores itself: a tenant may exceed the
    quota by what other replicas store until the next count.

    Args:
        steering: counts and deletes.
        worker: returns what all keys of the worker begin with.
        max_bytes: of one tenant's chunks of this worker.
        counters: of the tier.
        on_exception: called with what nothing here should raise.
    """

    def __init__(
        self,
        steering: Steering,
        worker: Callable[[], str],
        max_bytes: int,
        counters: Counters,
        on_exception: Callable[[Exception], None],
    ) -> None:
        self._steering = steering
        self._worker = worker
        self._max_bytes = max_bytes
        self._counters = counters
        self._lock = threading.Lock()  # of what follows
        self._counted: Mapping[str, int] = {}
        # Since the last count began, and between the two before. What waited in the queue during a
        # count is in the next one, so the older additions are counted twice rather than not at all.
        self._added: dict[str, int] = {}
        self._added_before: dict[str, int] = {}
        self._closed = threading.Event()
        start_supervised("quota", self._run, on_exception)

    def admits(self, key: str, size: int) -> bool:
        """Whether a chunk may be stored. Chunks of no tenant have no quota."""
        tag = tags.of_key(key)
        if tag is None or not tag.tenant:
            return True
        with self._lock:
            added = self._added.get(tag.tenant, 0) + size
            known = self._counted.get(tag.tenant, 0) + self._added_before.get(tag.tenant, 0)
            if known + added > self._max_bytes:
                return False
            self._added[tag.tenant] = added
            return True

    def close(self) -> None:
        """Count no more."""
        self._closed.set()

    def _run(self) -> None:
        seconds, logged = 0.0, ""
        while not self._closed.wait(max(_PAUSE, _PAUSE_FACTOR * seconds)):
            began = time.monotonic()
            try:
                self.enforce()
                logged = ""
            except StoreError as error:
                if str(error) != logged:
                    logged = str(error)
                    logger.warning("The quotas of tenants are not counted: %s", logged)
            finally:
                seconds = time.monotonic() - began

    def enforce(self) -> None:
        """Count the store, and delete the oldest chunks of tenants that exceed the quota.

        Raises:
            StoreError: the store fails.
        """
        with self._lock:
            before = dict(self._added)
        found: dict[str, int] = {}
        for tag, usage in self._steering.usage(self._worker(), EVERYTHING).items():
            if tag.tenant:
                found[tag.tenant] = found.get(tag.tenant, 0) + usage.bytes
        most = int(_LEFT * self._max_bytes)
        for tenant, size in found.items():
            if size > most:
                # One that is just below may be refused its next chunk, so it gets room as well.
                chunks, left = self._steering.trim(self._worker(), Selection(tenant=tenant), most)
                found[tenant] = left
                self._counters.add("quota_evicted", chunks)
        with self._lock:
            self._counted, self._added_before = found, before
            since = {tenant: size - before.get(tenant, 0) for tenant, size in self._added.items()}
            self._added = {tenant: size for tenant, size in since.items() if size > 0}
