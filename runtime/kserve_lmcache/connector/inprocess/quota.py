"""The share of the local tier that one tenant may fill."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from kserve_lmcache.identity import tag as tags
from kserve_lmcache.metrics.table import metric

if TYPE_CHECKING:
    from lmcache.utils import CacheEngineKey

    from kserve_lmcache.compat.lmcache.local_tier import LocalTier

_LEFT = 0.9  # of the quota, after room was made for a new chunk
_PAUSE = 1.0  # seconds until a tenant's chunks, all in use, are counted again


class LocalQuota:
    """Makes room for a tenant's new chunks among the tenant's own.

    Safe to use from several threads.

    Args:
        local: returns the tier.
        max_bytes: of one tenant.
    """

    def __init__(self, local: Callable[[], LocalTier], max_bytes: int) -> None:
        self._local = local
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        # At least what the tier has of each tenant. Chunks that LMCache evicts stay counted.
        self._bytes: dict[str, int] = {}
        # Tenants for whom no room could be made, and until when: a step of the engine waits here.
        self._full: dict[str, float] = {}
        self._evicted = metric("quota_evicted_total", tier="local_cpu")
        self._refused = metric("quota_refused_total", tier="local_cpu")

    def admits(self, key: CacheEngineKey, size: int) -> bool:
        """Whether a chunk may be stored. Chunks of no tenant have no quota."""
        tenant = _tenant_of(key)
        if not tenant or not size or self._local().has(key):
            return True
        with self._lock:
            if self._bytes.get(tenant, 0) + size > self._max_bytes and self._may_look(tenant):
                self._make_room(tenant, size)
            fits = self._bytes.get(tenant, 0) + size <= self._max_bytes
            if fits:
                self._bytes[tenant] = self._bytes.get(tenant, 0) + size
        if not fits:
            self._refused.inc(1)
        return fits

    def _may_look(self, tenant: str) -> bool:
        return self._full.get(tenant, 0.0) <= time.monotonic()

    def _make_room(self, tenant: str, size: int) -> None:
        """Count anew, and evict chunks of the tenant, in LMCache's order, if need be."""
        local = self._local()
        own: list[tuple[CacheEngineKey, int]] = []
        self._bytes.clear()
        self._full = {each: until for each, until in self._full.items() if not self._may_look(each)}
        for key, bytes_, _ in local.chunks():
            if of := _tenant_of(key):
                self._bytes[of] = self._bytes.get(of, 0) + bytes_
                if of == tenant:
                    own.append((key, bytes_))
        if self._bytes.get(tenant, 0) + size <= self._max_bytes:
            return
        most = max(0, int(_LEFT * self._max_bytes) - size)
        for key, bytes_ in own:
            if self._bytes[tenant] <= most:
                break
            if local.evict(key):
                self._bytes[tenant] -= bytes_
                self._evicted.inc(1)
        if self._bytes[tenant] + size > self._max_bytes:
            self._full[tenant] = time.monotonic() + _PAUSE


def _tenant_of(key: CacheEngineKey) -> str:
    tag = tags.of_key(key.to_string())
    return "" if tag is None else tag.tenant
