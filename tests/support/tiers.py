"""Tiers without an engine. Their chunks are random bytes."""

from __future__ import annotations

import functools
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kserve_lmcache.config.stores import Remote
from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.tiers.disk.directory import DiskDirectory, file_name
from kserve_lmcache.tiers.disk.store import DiskStore
from kserve_lmcache.tiers.guard.codec import Layout, header_size
from kserve_lmcache.tiers.guard.store import Store
from kserve_lmcache.tiers.guard.tier import Tier
from kserve_lmcache.tiers.redis.store import RedisStore
from tests.support.waiting import until

SIZE = 2 * 3 * 16 * 8 * 2
LAYOUT = Layout("KV_2LTD", (("bfloat16", (2, 3, 16, 8)),))


@contextmanager
def redis_tier(
    remote: Remote, limits: TierLimits | None = None, wait: bool = True, size: int = SIZE
) -> Iterator[Tier]:
    """Makes a tier of a Redis store, and waits until it answers.

    Args:
        remote: the store.
        limits: of the tier; by default its own.
        wait: whether to wait.
        size: bytes of a chunk.
    """
    limits = limits or TierLimits()
    largest = header_size(LAYOUT) + size

    make_store = functools.partial(RedisStore, remote, limits, max_value_bytes=lambda: largest)
    tier = Tier(remote.url, make_store, limits, 16, size)
    try:
        if wait:
            until(lambda: bool(tier.report()["up"]))
        yield tier
    finally:
        tier.close()


@dataclass(frozen=True)
class DiskTier:
    """A disk tier and its directory."""

    tier: Tier
    directory: DiskDirectory

    def path(self, key: str) -> Path:
        return self.directory.path / file_name(key)

    def count(self, name: str) -> int:
        return int({**self.tier.report(), **self.directory.report()}[name])


@contextmanager
def disk_tier(
    path: Path, max_bytes: int = 1 << 24, limits: TierLimits | None = None, wait: bool = True
) -> Iterator[DiskTier]:
    """Makes a tier of a directory, and waits until it answers and has scanned the directory."""
    limits = limits or TierLimits(lookup=1)
    directory = DiskDirectory(path, max_bytes)

    make_store = functools.partial(DiskStore, directory)
    tier = Tier(str(path), make_store, limits, 16, SIZE)
    try:
        if wait:
            until(lambda: bool(tier.report()["up"]) and directory.is_scanned.is_set())
        yield DiskTier(tier, directory)
    finally:
        tier.close()
        directory.close()


def chunks(*names: str, size: int = SIZE) -> dict[str, bytes]:
    """Makes a chunk for each name, always the same."""
    return {name: random.Random(name).randbytes(size) for name in names}


def store(tier: Tier, values: Mapping[str, bytes]) -> None:
    """Stores the chunks."""
    for key, value in values.items():
        tier.store(key, LAYOUT, value, lambda: None)


def store_all(tier: Tier, values: Mapping[str, bytes], seconds: float = 10) -> None:
    """Stores the chunks and waits until the queue is empty."""
    store(tier, values)
    until(lambda: tier.report()["queue_bytes"] == 0, seconds)


def load(tier: Tier, keys: Sequence[str]) -> list[bytes]:
    """Loads the chunks of ``keys``."""
    return [bytes(memory) for memory in tier.load(keys, make_room, lambda memory: None)]


def make_room(layout: Layout, size: int) -> tuple[bytearray, memoryview]:
    """Makes room for a chunk."""
    memory = bytearray(size)
    return memory, memoryview(memory)


def read(store: Store, keys: Sequence[str]) -> list[bytes | None]:
    """Reads values from a store."""
    return [None if value is None else value.whole() for value in store.read(keys)]


def threads(name: str) -> int:
    """Counts the running threads of this name."""
    return sum(thread.name == name for thread in threading.enumerate())
