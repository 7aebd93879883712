"""A cache server of the product's, as the engine's server starts it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from kserve_lmcache.cache_server.announcement import announced
from kserve_lmcache.config import engine_file
from kserve_lmcache.config.stores import Disk, Remote
from kserve_lmcache.config.tier_limits import TierLimits
from tests.support.processes import Process
from tests.support.waiting import until

MIB = 2**20


class CacheServer:
    """The process and what it announces."""

    def __init__(self, file: Path, size: int) -> None:
        self.file, self.directory = file, file.parent
        command = [sys.executable, "-m", "kserve_lmcache.cache_server", str(file), str(size)]
        self.process = Process(command, self.directory / "cache-server.log")
        self.process.wait_until(lambda: announced(self.directory) is not None, 60)

    @property
    def incarnation(self) -> str:
        found = announced(self.directory)
        return "" if found is None else found.incarnation

    @property
    def serving(self) -> psutil.Process:
        """The process that serves."""
        found = announced(self.directory)
        assert found is not None
        return psutil.Process(found.pid)

    def kill(self) -> None:
        """Kill the process that serves, and wait until another serves."""
        before = self.incarnation
        self.serving.kill()
        until(lambda: self.incarnation not in ("", before), 30)


@contextmanager
def cache_server(
    directory: Path,
    size: int = 64 * MIB,
    remote: Remote | None = None,
    limits: TierLimits | None = None,
    disk: tuple[Disk, TierLimits] | None = None,
    **values: Any,
) -> Iterator[CacheServer]:
    """A cache server.

    Args:
        directory: of the server.
        size: bytes of its memory.
        remote: the store below, if there is one.
        limits: of the store.
        disk: the disk tier, if there is one.
        **values: LMCache's.
    """
    file = directory / "lmcache.yaml"
    all_values: Mapping[str, Any] = {
        "chunk_size": 256,
        "max_local_cpu_size": size / 2**30,
        **({"remote_url": remote.url} if remote is not None else {}),
        **values,
    }
    engine_file.write(all_values, remote, file, limits or (TierLimits() if remote else None), disk)
    server = CacheServer(file, size)
    try:
        yield server
    finally:
        server.process.stop()


def environment(server: CacheServer) -> dict[str, str]:
    """What tells an engine's process of the server."""
    return {**os.environ, "LMCACHE_CONFIG_FILE": str(server.file)}
