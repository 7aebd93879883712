"""LMCache's storage manager for a process of its own (``lmcache.v1.distributed``, LMCache 0.5.6).

Memory objects lie in one segment of shared memory, and have opaque bytes. The storage manager
evicts them, writes them through to tiers below (*L2 adapters*), and fetches them from there.

``tests/integration/test_lmcache_storage.py`` fails when an upgrade changes one of the internals.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import threading
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from lmcache.v1.distributed.api import (
    GroupedObjectKeys,
    MemoryLayoutDesc,
    ObjectKey,
    PrefetchHandle,
    PrefetchLockMode,
    PrefetchResult,
    PrefetchTaskSpec,
)
from lmcache.v1.distributed.config import (
    EvictionConfig,
    L1ManagerConfig,
    L1MemoryManagerConfig,
    StorageManagerConfig,
)
from lmcache.v1.distributed.l2_adapters.config import L2AdaptersConfig
from lmcache.v1.distributed.l2_adapters.plugin_l2_adapter import PluginL2AdapterConfig
from lmcache.v1.distributed.storage_manager import _L1_WRITE_TAG, StorageManager

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (where Linux has it)
# The beginning of our segments' names. LMCache removes none that begins in another way.
_OURS = "lmcache_l1_pool_kserve-"

_MADV_POPULATE_WRITE = 23  # madvise(2)
_READ_SECONDS = 60  # after which a read lock ends that nobody releases
# Shares of the memory: above the first, the second is freed, oldest first, once a second. LMCache
# frees nothing when it is needed; :meth:`Storage._make_room` does.
_FULL, _FREED = 0.9, 0.1
# Lookups in tiers below at a time. LMCache's default of 8 lets lookups wait for others.
_FETCHES = 32


class Row(Protocol):
    """The objects of one worker (:class:`kserve_lmcache.cache_server.messages.Row`)."""

    @property
    def model(self) -> str:
        """Names the model and the form of the bytes."""

    @property
    def rank(self) -> tuple[int, int]:
        """Of the worker, and of how many."""

    @property
    def size(self) -> int:
        """Bytes of an object."""

    @property
    def salt(self) -> str:
        """What keeps objects of one model apart."""


@dataclass(frozen=True)
class Plugin:
    """A tier below: a class of ours, which LMCache imports by name.

    Attributes:
        module: that has the class.
        name: of the class.
        parameters: for the class.
    """

    module: str
    name: str
    parameters: Mapping[str, Any]


class Storage:
    """Memory objects in shared memory.

    Args:
        segment: the end of the segment's name.
        size: bytes.
        tiers: below, in the order in which they are asked.
        reservation_seconds: after which a reservation that nobody completes is given away.

    Attributes:
        reservation_seconds: as given.
        segment: the name of the segment.
        size: bytes.
        has_tiers: whether there are tiers below.

    Raises:
        OSError: the shared memory has no room.
    """

    def __init__(
        self,
        segment: str,
        size: int,
        tiers: Sequence[Plugin] = (),
        reservation_seconds: int = 60,
    ) -> None:
        self.segment, self.size = _OURS + segment, size
        self.has_tiers = bool(tiers)
        self.reservation_seconds = reservation_seconds
        self._making_room = threading.Lock()
        eviction = EvictionConfig("LRU", trigger_watermark=_FULL, eviction_ratio=_FREED)
        # Not lazy: a lazy memory has no segment.
        memory = L1MemoryManagerConfig(size, use_lazy=False, shm_name=self.segment)
        self._alignment = int(memory.align_bytes)
        adapters = [
            PluginL2AdapterConfig(tier.module, tier.name, dict(tier.parameters)) for tier in tiers
        ]
        self._manager = StorageManager(
            StorageManagerConfig(
                L1ManagerConfig(
                    memory,
                    write_ttl_seconds=reservation_seconds,
                    read_ttl_seconds=_READ_SECONDS,
                ),
                eviction,
                L2AdaptersConfig(adapters),
                # What was fetched stays, as what was stored does.
                prefetch_policy="retain",
                prefetch_max_in_flight=_FETCHES,
            )
        )
        self._descriptor = os.open(SHARED_MEMORY / self.segment, os.O_RDWR)
        try:
            self._allocate_pages()
        except OSError:
            self.close()
            raise

    def _allocate_pages(self) -> None:
        """Own the segment, which a server that starts would remove else, and take the memory now.

        A page that a full /dev/shm lacks later kills whoever touches it.
        """
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)
        os.posix_fallocate(self._descriptor, 0, self.size)
        _map_pages(self.segment)

    def reserve(self, row: Row, digests: Sequence[bytes]) -> tuple[list[int], int]:
        """Reserve objects to be written.

        Returns:
            The offset of each object in the segment, -1 for one that is there already, that
            somebody else writes, or for which there is no room; and the number of the latter.
        """
        keys = _keys(row, digests)
        new = [key for key in keys if not self._is_resident(key)]
        needed = len(new) * self._allocated(row)
        room = self._make_room(needed)
        reserved = self._manager.reserve_write(keys, _layout(row))
        dropped = 0
        # Without room for all that are new, LMCache has reserved none.
        for key in new if room < needed else ():
            if key in reserved:
                continue
            if self._free() >= self._allocated(row):
                reserved.update(self._manager.reserve_write([key], _layout(row)))
            else:
                dropped += 1
        return [reserved[key].shm_offset if key in reserved else -1 for key in keys], dropped

    def _make_room(self, size: int, kept: Container[bytes] = ()) -> int:
        """Evict the oldest objects, but no chunk of ``kept``, until ``size`` bytes are free.

        Returns:
            The bytes that are free, which are fewer where objects are in use.
        """
        controller, manager = self._manager._eviction_controller, self._manager._l1_manager
        size = min(size, self.size)

        def may_go(key: ObjectKey) -> bool:
            return key.chunk_hash not in kept and manager.is_key_evictable(key)

        with self._making_room:
            while size > (free := self._free()):
                share = (size - free) / self.used()  # of the objects; one at least
                for action in controller._eviction_policy.get_eviction_actions(share, may_go):
                    controller.execute_eviction_action(action)
                if self._free() == free:
                    break
            return self._free()

    def _allocated(self, row: Row) -> int:
        """The bytes that LMCache allocates for an object."""
        return -(-row.size // self._alignment) * self._alignment

    def _is_resident(self, key: ObjectKey) -> bool:
        return self._manager._l1_manager.get_object_state(key) is not None

    def _free(self) -> int:
        used, total = self._manager.get_l1_usage()
        return int(total - used)

    def complete(self, row: Row, digests: Sequence[bytes]) -> None:
        """Make reserved objects, which are written, visible; write them to the tiers below."""
        self._manager.finish_write(_keys(row, digests))

    def withdraw(self, row: Row, digests: Sequence[bytes]) -> None:
        """Give back the memory of reserved objects, which nobody writes."""
        keys = _keys(row, digests)
        self._manager._l1_manager.finish_write_and_delete(keys, _L1_WRITE_TAG)

    def give_up(self, row: Row, digest: bytes) -> None:
        """Give back the memory of a reservation that has ended."""
        (key,) = _keys(row, [digest])
        if not self._is_resident(key):
            self._manager.delete_l1_keys([key])

    def find(self, rows: Sequence[Row], digests: Sequence[bytes]) -> int:
        """How many chunks, counted from the first, the memory has of all workers."""
        handle = self._manager.submit_prefetch_task(
            self._task(rows, digests, PrefetchLockMode.NO_LOCK), skip_l2=True
        )
        return self._chunks(self._manager.query_prefetch_status(handle))

    def fetch(
        self, rows: Sequence[Row], digests: Sequence[bytes], first: int
    ) -> PrefetchHandle | None:
        """Begin to fetch chunks from the tiers below, as many as find room.

        Args:
            rows: a row for each worker.
            digests: of a prompt's chunks.
            first: the number of the first chunk to fetch. Those in front of it are not evicted.

        Returns:
            The argument of :meth:`fetched`; ``None`` where not one finds room.
        """
        size = sum(map(self._allocated, rows))
        count = self._make_room((len(digests) - first) * size, set(digests)) // size
        if not count:
            return None
        wanted = digests[first : first + count]
        return self._manager.submit_prefetch_task(
            self._task(rows, wanted, PrefetchLockMode.NO_LOCK)
        )

    def fetched(self, handle: PrefetchHandle, seconds: float) -> int | None:
        """How many chunks, counted from the first, the memory has; ``None`` after ``seconds``."""
        if not self._manager.wait_prefetch_status(handle, seconds):
            return None
        return self._chunks(self._manager.query_prefetch_status(handle))

    def read(self, row: Row, digests: Sequence[bytes]) -> list[int]:
        """Lock objects until :meth:`release`; from the first up to one that is missing.

        Returns:
            Their offsets in the segment.
        """
        handle = self._manager.submit_prefetch_task(
            self._task([row], digests, PrefetchLockMode.LOCK), skip_l2=True
        )
        found = self._chunks(self._manager.query_prefetch_status(handle))
        keys, objects = self._manager.unsafe_read(_keys(row, digests[:found]))
        if len(keys) < found:  # somebody deleted one by force
            self._manager.finish_read_prefetched(keys)
            return []
        return [each.shm_offset for each in objects]

    def release(self, row: Row, digests: Sequence[bytes]) -> None:
        """Unlock objects that :meth:`read` locked."""
        self._manager.finish_read_prefetched(_keys(row, digests))

    def discard(self, row: Row, digests: Sequence[bytes]) -> None:
        """Delete objects from the memory and from the tiers below. Locked objects stay."""
        keys = _keys(row, digests)
        self._manager.delete_l1_keys(keys)
        for _, adapter in self._manager.l2_adapters():
            adapter.delete(keys)

    def used(self) -> int:
        """Bytes of the memory that are in use."""
        return int(self._manager.get_l1_usage()[0])

    def close(self) -> None:
        """End the threads, and remove the segment."""
        self._manager.close()
        os.close(self._descriptor)

    @staticmethod
    def _task(
        rows: Sequence[Row], digests: Sequence[bytes], lock: PrefetchLockMode
    ) -> PrefetchTaskSpec:
        groups = [GroupedObjectKeys(_keys(row, digests), row.rank[0], _layout(row)) for row in rows]
        return PrefetchTaskSpec(groups, lock_mode=lock)

    @staticmethod
    def _chunks(result: PrefetchResult | None) -> int:
        if result is None:
            return 0
        return min((_leading(row) for row in result.hit_cells), default=0)


def _map_pages(segment: str) -> None:
    """Map the pages of LMCache's mapping now, which takes a third off the time of a first fetch.

    Kernels before Linux 5.14 cannot map all at once, and leave it to the first write.
    """
    libc = ctypes.CDLL(None)
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(f"/{segment}"):
            begin, end = (int(each, 16) for each in line.split(maxsplit=1)[0].split("-"))
            libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_POPULATE_WRITE)


def named(key: ObjectKey) -> tuple[str, tuple[int, int], str]:
    """The model, the rank and the salt of an object's row."""
    world, rank = key.kv_rank >> 24 & 0xFF, key.kv_rank >> 16 & 0xFF
    return key.model_name, (rank, world), key.cache_salt


def _keys(row: Row, digests: Iterable[bytes]) -> list[ObjectKey]:
    rank, world = row.rank
    packed = ObjectKey.ComputeKVRank(world, rank, world, rank)
    # LMCache knows one layout of a group in a task, and workers' objects may differ in size.
    return [ObjectKey(digest, row.model, packed, rank, row.salt) for digest in digests]


def _layout(row: Row) -> MemoryLayoutDesc:
    return MemoryLayoutDesc([torch.Size([row.size])], [torch.uint8])


def _leading(row: Any) -> int:
    return int(row.count_leading_ones())


def remove_left_over_segments() -> None:
    """Remove the segments of servers that were killed."""
    for path in SHARED_MEMORY.glob(f"{_OURS}*"):
        with suppress(OSError), path.open("rb") as file:
            # Nobody holds it: whoever used it is dead.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
