"""The local CPU tier of a worker, chunk by chunk (LMCache 0.5.1 to 0.5.6).

``tests/integration/test_lmcache_contract.py`` fails when an upgrade changes one of the internals.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmcache.utils import CacheEngineKey
    from lmcache.v1.cache_engine import LMCacheEngine
    from lmcache.v1.memory_management import MemoryObj

_BACKEND = "LocalCPUBackend"
_LOOK_SECONDS = 0.01  # between two looks at who holds a chunk
_SLACK = 1000  # times of chunks that are gone, before they are forgotten


class LocalTier:
    """The chunks in a worker's memory. Safe to use from several threads.

    Every chunk comes in by LMCache's ``submit_put_task``, which this class replaces, as it does
    ``touch_cache``: LMCache's raises for a chunk that went between a lookup's search and its end,
    and again at the end of every later lookup.

    Args:
        engine: LMCache's engine of the worker.
        admits: asked with the key and the size in bytes before a chunk is stored, and once more
            with no size after. Must not raise.
    """

    def __init__(
        self, engine: LMCacheEngine, admits: Callable[[CacheEngineKey, int], bool]
    ) -> None:
        self._engine = engine
        self._backend: Any = engine.storage_manager.storage_backends.get(_BACKEND)
        self._admits = admits
        self._lock = threading.Lock()  # of what follows
        self._since: dict[CacheEngineKey, float] = {}  # by time.time(), some of chunks that went
        if self._backend is not None:
            self._put = self._backend.submit_put_task
            self._backend.submit_put_task = self._submit
            self._backend.touch_cache = self._touch

    @property
    def worker(self) -> str:
        """What all keys of this worker begin with, as text."""
        key = self._engine.token_database._make_key_by_hash(0).to_string()
        return "@".join(key.split("@")[:3]) + "@"

    def keys_of(self, tokens: Sequence[int], tag_name: str, tag: str) -> list[CacheEngineKey]:
        """The keys of the chunks of a prompt; of a chunk that is not full as well.

        Args:
            tokens: of the prompt.
            tag_name: LMCache's name of the tag.
            tag: of the request; empty for none.
        """
        configs = {tag_name: tag} if tag else None
        chunks = self._engine.token_database.process_tokens(
            tokens=list(tokens), request_configs=configs
        )
        return [key for _, _, key in chunks]

    def chunks(self) -> list[tuple[CacheEngineKey, int, float]]:
        """All chunks, those that are evicted first in front: key, bytes, seconds in this tier."""
        if self._backend is None:
            return []
        now = time.time()
        with self._backend.cpu_lock:
            items = list(self._backend.hot_cache.items())
        with self._lock:
            since = dict(self._since)
        return [
            (key, memory.get_physical_size(), max(0.0, now - since.get(key, now)))
            for key, memory in items
        ]

    def has(self, key: CacheEngineKey) -> bool:
        """Whether the tier has a chunk."""
        return self._backend is not None and self._backend.contains(key)

    def erase(self, keys: Iterable[CacheEngineKey], seconds: float) -> tuple[int, int]:
        """Remove chunks, and overwrite their memory once nobody holds them.

        Args:
            keys: of the chunks.
            seconds: to wait for loads and writes that hold a chunk.

        Returns:
            The numbers of the chunks that were there, and of those that somebody still holds.
        """
        deadline, removed = time.monotonic() + seconds, []
        for key in keys:
            if (memory := self.take(key)) is not None:
                self._backend.remove(key)
                removed.append(memory)
        held = 0
        for memory in removed:
            while memory.get_ref_count() > 1 and time.monotonic() < deadline:
                time.sleep(_LOOK_SECONDS)
            if memory.get_ref_count() > 1:
                held += 1
            else:
                memory.raw_data.zero_()
            memory.ref_count_down()
        return len(removed), held

    def evict(self, key: CacheEngineKey) -> bool:
        """Remove a chunk that nobody holds. Returns whether it is gone."""
        with self._backend.cpu_lock:
            memory = self._backend.hot_cache.get(key)
            if memory is not None and not memory.can_evict:
                return False
        # A lookup that pins the chunk in between finds nothing to load, and the prompt is computed.
        self._backend.remove(key)
        return True

    def take(self, key: CacheEngineKey) -> MemoryObj | None:
        """A reference to a chunk, which LMCache keeps until it is given back; ``None`` without."""
        return self._backend.get_blocking(key) if self._backend is not None else None

    def put(self, key: CacheEngineKey, memory: MemoryObj) -> None:
        """Store a chunk, where the tier keeps any, and give back the caller's reference."""
        try:
            if self._backend.use_hot:
                self._submit(key, memory)
        finally:
            memory.ref_count_down()

    def _touch(self) -> None:
        """Note the use of the chunks that the last lookup found."""
        backend = self._backend
        with backend.cpu_lock:
            found, backend.keys_in_request = backend.keys_in_request, []
            for key in reversed(found):
                if key in backend.hot_cache:
                    backend.cache_policy.update_on_hit(key, backend.hot_cache)

    def _submit(self, key: CacheEngineKey, memory_obj: MemoryObj, *others: Any, **more: Any) -> Any:
        if not self._admits(key, memory_obj.get_physical_size()):
            return None
        there = self._backend.hot_cache
        with self._lock:
            if key not in there:
                self._since[key] = time.time()
            if len(self._since) > 2 * len(there) + _SLACK:
                self._since = {key: at for key, at in self._since.items() if key in there}
        result = self._put(key, memory_obj, *others, **more)
        # Who erases chunks admits none any more, and then looks which there are.
        if not self._admits(key, 0):
            self._backend.remove(key)
        return result
