"""A tier of this package as LMCache's storage manager asks it: deadlines, breaker, checksums.

LMCache imports the classes by their names. Its own threads call every method, and none waits.
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmcache.lmcache_native import Bitmap
from lmcache.v1.distributed.internal_api import L2StoreResult
from lmcache.v1.distributed.l2_adapters.base import L2AdapterInterface

from kserve_lmcache.cache_server.messages import Row
from kserve_lmcache.cache_server.objects import PROOF, fault_of, name_of
from kserve_lmcache.compat.lmcache.storage import named
from kserve_lmcache.config.tier_plugins import DISK_PLUGIN, REMOTE_PLUGIN
from kserve_lmcache.tiers.disk.directory import DiskDirectory
from kserve_lmcache.tiers.disk.journal import remove_abandoned
from kserve_lmcache.tiers.disk.store import DiskStore
from kserve_lmcache.tiers.guard.codec import Layout, header_size
from kserve_lmcache.tiers.guard.daemon_threads import DaemonThreadPool
from kserve_lmcache.tiers.guard.tier import LOADS, LOOKUPS, Tier
from kserve_lmcache.tiers.redis.store import RedisStore

if TYPE_CHECKING:
    from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
    from lmcache.v1.memory_management import MemoryObj

CHUNK_TOKENS = "chunk_tokens"  # beside the plugin's entries in the parameters of an adapter
_FORMAT = "OBJECT"
_LEAST_PROOF, _LARGEST_PROOF = 2**12, 2**20  # bytes
# A tier connects while the engine starts. The start waits so long for one that does not answer.
_PROOF_SECONDS = 0.3
_MAX_SOURCES = 100_000  # digests of fetched chunks, until somebody asks for them


class _Tasks:
    """Results of one kind of task, and the file descriptor that tells of them."""

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._results: dict[int, Any] = {}

    def end(self, task: int, result: Any) -> None:
        """Keep a result, and tell of it."""
        with self._lock:
            self._results[task] = result
        os.eventfd_write(self.descriptor, 1)

    def take(self, task: int) -> Any:
        """A result, once; ``None`` where there is none."""
        with self._lock:
            return self._results.pop(task, None)

    def take_all(self) -> dict[int, Any]:
        """All results, once."""
        with self._lock:
            results, self._results = self._results, {}
            return results


class TierAdapter(L2AdapterInterface):  # type: ignore[misc]
    """A tier. Subclasses make it.

    Args:
        parameters: the entries of the tier's plugin, and the tokens of a chunk.
        others: what LMCache gives besides.
    """

    name: str

    def __init__(self, parameters: Mapping[str, Any], **others: Any) -> None:
        super().__init__()
        self._largest = 1  # bytes of an object, of those that were seen
        self.tier = self._make_tier(parameters)
        self._numbers = itertools.count(1)
        self._lookups, self._loads, self._stores = _Tasks(), _Tasks(), _Tasks()
        self._lookup_pool = DaemonThreadPool(f"{self.name}-lookups", LOOKUPS)
        self._load_pool = DaemonThreadPool(f"{self.name}-loads", LOADS)
        self._store_pool = DaemonThreadPool(f"{self.name}-stores", 1)
        TIERS[self.name] = self

    def _make_tier(self, parameters: Mapping[str, Any]) -> Tier:
        raise NotImplementedError

    def _max_value_bytes(self) -> int:
        return header_size(_layout(self._largest)) + self._largest

    def _saw(self, size: int) -> None:
        if size > self._largest:
            self._largest = self.tier.chunk_bytes = size

    def get_store_event_fd(self) -> int:
        """Tells of stores that have ended."""
        return self._stores.descriptor

    def get_lookup_and_lock_event_fd(self) -> int:
        """Tells of lookups that have ended."""
        return self._lookups.descriptor

    def get_load_event_fd(self) -> int:
        """Tells of loads that have ended."""
        return self._loads.descriptor

    def submit_store_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> int:
        """Queue objects for writing. They stay in the memory until they are written."""
        task = next(self._numbers)
        self._store_pool.submit(self._store, task, list(zip(keys, objects, strict=True)))
        return task

    def pop_completed_store_tasks(self) -> dict[int, L2StoreResult]:
        """The stores that have ended. What was dropped is in the tier's metrics."""
        return self._stores.take_all()

    def submit_lookup_and_lock_task(
        self, keys: list[ObjectKey], group_layout_descs: dict[int, MemoryLayoutDesc]
    ) -> int:
        """Look up some objects of each worker. Nothing is locked."""
        task = next(self._numbers)
        for layout in group_layout_descs.values():
            self._saw(sum(shape.numel() for shape in layout.shapes))
        self._lookup_pool.submit(self._look_up, task, keys)
        return task

    def query_lookup_and_lock_result(self, task_id: int) -> Bitmap | None:
        """Which objects were found; ``None`` while the lookup runs."""
        return self._lookups.take(task_id)

    def submit_unlock(self, keys: list[ObjectKey]) -> None:
        """Do nothing: nothing is locked."""

    def submit_load_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> int:
        """Load objects into the given memory."""
        task = next(self._numbers)
        self._load_pool.submit(self._load, task, keys, objects)
        return task

    def query_load_result(self, task_id: int) -> Bitmap | None:
        """Which objects were loaded; ``None`` while the load runs."""
        return self._loads.take(task_id)

    def delete(self, keys: list[ObjectKey]) -> None:
        """Delete objects in the background."""
        for key in keys:
            self.tier.delete(_name(key))

    def prove(self) -> str:
        """Store random bytes, and read them. See :meth:`.Tier.prove`."""
        self._saw(_LEAST_PROOF)
        payload = os.urandom(min(self._largest, _LARGEST_PROOF))
        return self.tier.prove(_layout(len(payload)), payload, _PROOF_SECONDS)

    def close(self) -> None:
        """Write the queue, if that takes little time, and close the store."""
        self.tier.close()
        for pool in (self._lookup_pool, self._load_pool, self._store_pool):
            pool.shutdown(wait=False)
        TIERS.pop(self.name, None)

    def report_status(self) -> dict[str, Any]:
        """The tier's report, as LMCache wants it."""
        return {"is_healthy": True, **self.tier.report()}

    def _store(self, task: int, objects: Sequence[tuple[ObjectKey, MemoryObj]]) -> None:
        size = sum(memory_obj.get_size() for _, memory_obj in objects)
        lock, left = threading.Lock(), len(objects)

        def release() -> None:
            nonlocal left
            with lock:
                left -= 1
                if left:
                    return
            # LMCache would log a failed store with all its keys.
            self._stores.end(task, L2StoreResult(True, size))

        for key, memory_obj in objects:
            memory, name = _bytes_of(memory_obj), _name(key)
            self._saw(len(memory))
            # Of a writer that was late: nobody reads it.
            if key.model_name == PROOF or fault_of(name, memory):
                release()
            else:
                self.tier.store(name, _layout(len(memory)), memory, release)

    def _look_up(self, task: int, keys: Sequence[ObjectKey]) -> None:
        found = Bitmap(len(keys))
        try:
            for begin, names in _by_worker(keys):
                found.set_range(begin, begin + self.tier.lookup(names))
        finally:
            self._lookups.end(task, found)

    def _load(self, task: int, keys: Sequence[ObjectKey], objects: Sequence[MemoryObj]) -> None:
        loaded = Bitmap(len(keys))
        try:
            for begin, names in _by_worker(keys):
                targets = [_bytes_of(each) for each in objects[begin : begin + len(names)]]
                count = self._load_worker(names, targets)
                loaded.set_range(begin, begin + count)
                SOURCES.add((key.chunk_hash for key in keys[begin : begin + count]), self.name)
        finally:
            self._loads.end(task, loaded)

    def _load_worker(self, names: Sequence[str], targets: Sequence[memoryview]) -> int:
        """Load objects from the first up to one that fails; returns how many."""
        for each in targets:
            self._saw(len(each))
        waiting = iter(targets)

        def make_room(_: Layout, size: int) -> tuple[bool, memoryview] | None:
            target = next(waiting)
            return (True, target) if len(target) == size else None

        return len(self.tier.load(names, make_room, lambda _: None))


class RemoteAdapter(TierAdapter):
    """The remote tier: a store that replicas share."""

    name = REMOTE_PLUGIN.tier

    def _make_tier(self, parameters: Mapping[str, Any]) -> Tier:
        remote, limits = REMOTE_PLUGIN.decode(parameters)
        make_store = functools.partial(
            RedisStore, remote, limits, max_value_bytes=self._max_value_bytes
        )
        return Tier(remote.url, make_store, limits, parameters[CHUNK_TOKENS], 0)


class DiskAdapter(TierAdapter):
    """The disk tier: a directory of this machine."""

    name = DISK_PLUGIN.tier

    def _make_tier(self, parameters: Mapping[str, Any]) -> Tier:
        disk, limits = DISK_PLUGIN.decode(parameters)
        path = Path(disk.directory_of(0))
        remove_abandoned([path], own=None)
        self._directory = DiskDirectory(path, disk.max_bytes)
        return Tier(
            str(self._directory.path),
            functools.partial(DiskStore, self._directory),
            limits,
            parameters[CHUNK_TOKENS],
            0,
            name=self.name,
            extra_report=self._directory.report,
        )

    def close(self) -> None:
        """Write the queue, if that takes little time, and end the scans of the directory."""
        super().close()
        self._directory.close()


class Sources:
    """Which tier a chunk was fetched from last; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tiers: dict[bytes, str] = {}

    def add(self, digests: Iterable[bytes], tier: str) -> None:
        """Remember that chunks were fetched."""
        with self._lock:
            if len(self._tiers) > _MAX_SOURCES:
                self._tiers.clear()
            self._tiers.update(dict.fromkeys(digests, tier))

    def count(self, digests: Iterable[bytes]) -> dict[str, int]:
        """How many of these chunks each tier gave; they are forgotten."""
        counts: dict[str, int] = {}
        with self._lock:
            for digest in digests:
                if (tier := self._tiers.pop(digest, None)) is not None:
                    counts[tier] = counts.get(tier, 0) + 1
        return counts


# Of this process. LMCache makes the adapters.
TIERS: dict[str, TierAdapter] = {}
SOURCES = Sources()


def _by_worker(keys: Sequence[ObjectKey]) -> Iterator[tuple[int, list[str]]]:
    """The names of each worker's objects, which lie together, and where they begin."""
    begin = 0
    for _, group in itertools.groupby(keys, key=lambda key: key.kv_rank):
        names = [_name(key) for key in group]
        yield begin, names
        begin += len(names)


def _name(key: ObjectKey) -> str:
    model, rank, salt = named(key)
    return name_of(Row(model, rank, 0, salt), key.chunk_hash)


def _layout(size: int) -> Layout:
    return Layout(_FORMAT, (("uint8", (size,)),))


def _bytes_of(memory_obj: MemoryObj) -> memoryview:
    return memoryview(memory_obj.raw_data.numpy()[: memory_obj.get_size()])
