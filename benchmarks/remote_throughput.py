"""How fast chunks come from Redis and go there, beside the same bytes through a bare socket.

    .venv/bin/python -m benchmarks.remote_throughput [--chunks N] [--rounds N]

The ways take turns, so that what else the machine does weighs on all of them alike. The store has
cores of its own: Linux would put it on the reader's core at some times and not at others.
"""

from __future__ import annotations

import argparse
import functools
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import numpy
import psutil
from redis import Redis

from benchmarks.contenders import redis, servers
from kserve_lmcache.config.stores import Remote
from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.tiers.guard.codec import Layout, header_size
from kserve_lmcache.tiers.guard.store import PIECE
from kserve_lmcache.tiers.guard.tier import Tier
from kserve_lmcache.tiers.redis.store import RedisStore

# One chunk of SmolLM2-135M: 256 tokens of 30 layers, K and V of 3 heads of 64, two bytes each.
SHAPE = (2, 30, 256, 192)
LAYOUT = Layout("KV_2LTD", (("bfloat16", SHAPE),))
SIZE = 2 * int(numpy.prod(SHAPE))
LIMITS = TierLimits(lookup=5, load=60, write=60, queue_bytes=2**31)


class GivenUpError(Exception):
    """A load took four times as long as the last ones, which says more about the machine."""


class BareSocket:
    """GET and SET as bytes, the answers into one buffer, which stays in the processor's cache."""

    def __init__(self, url: str, chunks: int) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname, parts.port))
        self._chunks = chunks
        self._value = bytes(SIZE + header_size(LAYOUT))
        self._answer = len(self._value) + len(f"${len(self._value)}\r\n\r\n")
        self._piece = memoryview(bytearray(PIECE))

    def write(self) -> None:
        for number in range(self._chunks):
            key = b"bare-%03d" % number
            head = b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n" % (len(key), key, len(self._value))
            self._socket.sendall(head)
            self._socket.sendall(self._value)
            self._socket.sendall(b"\r\n")
        for _ in range(self._chunks):
            self._receive(5)

    def read(self) -> None:
        """Two values are asked for at a time. For more, Redis maps new memory for its answers."""
        keys = (b"bare-%03d" % number for number in range(self._chunks))
        commands = (b"*2\r\n$3\r\nGET\r\n$8\r\n%s\r\n" % key for key in keys)
        self._socket.sendall(next(commands))
        for _ in range(self._chunks):
            self._socket.sendall(next(commands, b""))
            self._receive(self._answer)

    def _receive(self, left: int) -> None:
        while left:
            left -= self._socket.recv_into(self._piece[:left])


class GuardedTier:
    """Our remote tier, with one buffer a chunk."""

    def __init__(self, tier: Tier, url: str, chunks: int) -> None:
        self._tier = tier
        self._client = Redis.from_url(url)
        self._keys = [f"tier-{number:03d}" for number in range(chunks)]
        self._buffers = [numpy.zeros(SIZE, numpy.uint8) for _ in self._keys]

    def write(self) -> None:
        for key, buffer in zip(self._keys, self._buffers, strict=True):
            self._tier.store(key, LAYOUT, memoryview(buffer), lambda: None)
        until(lambda: self._tier.report()["queue_bytes"] == 0, 120)

    def forget(self) -> None:
        """What is there is not written again."""
        self._client.flushdb()

    def read(self) -> None:
        buffers = iter(self._buffers)

        def make_room(layout: Layout, size: int) -> tuple[bool, memoryview]:
            return True, memoryview(next(buffers))

        loaded = self._tier.load(self._keys, make_room, lambda taken: None)
        if len(loaded) < len(self._keys):
            raise GivenUpError


@contextmanager
def opened(url: str) -> Iterator[Tier]:
    remote = Remote(url, "benchmark")
    largest = header_size(LAYOUT) + SIZE
    make_store = functools.partial(RedisStore, remote, LIMITS, max_value_bytes=lambda: largest)
    tier = Tier(url, make_store, LIMITS, 256, SIZE)
    try:
        until(lambda: bool(tier.report()["up"]))
        yield tier
    finally:
        tier.close()


@contextmanager
def apart(url: str) -> Iterator[None]:
    """Threads that are made from now on run on the first core, and the store on the others."""
    first, *others = sorted(os.sched_getaffinity(0))
    if others:
        process = psutil.Process(Redis.from_url(url).info("server")["process_id"])
        process.cpu_affinity(others)
        os.sched_setaffinity(0, [first])
    yield
    os.sched_setaffinity(0, [first, *others])


def until(done: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until ``done`` answers true."""
    began = time.monotonic()
    while not done():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"not done in {seconds:g} s")
        time.sleep(0.01)


def timed(work: Callable[[], None], chunks: int) -> float:
    """Gigabytes a second."""
    began = time.perf_counter()
    work()
    return chunks * SIZE / (time.perf_counter() - began) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=16, help="of 5.9 MB, in one load")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    found: dict[str, list[float]] = {}
    with (
        tempfile.TemporaryDirectory() as directory,
        servers(Path(directory)) as started,
        apart(store := redis(started)),
        opened(store) as remote_tier,
    ):
        bare = BareSocket(store, args.chunks)
        tier = GuardedTier(remote_tier, store, args.chunks)
        for round_ in range(args.rounds + 1):
            tier.forget()
            for name, work in (
                ("write, bare socket", bare.write),
                ("write, remote tier", tier.write),
                ("read, bare socket", bare.read),
                ("read, remote tier", tier.read),
            ):
                try:
                    speed = timed(work, args.chunks)
                except GivenUpError:
                    print(f"given up: {name}")
                    continue
                if round_:  # the first one warms up
                    found.setdefault(name, []).append(speed)
    print("| | median GB/s | share |\n|---|---|---|")
    for name, speeds in found.items():
        best = median(found[f"{name.partition(',')[0]}, bare socket"])
        print(f"| {name} | {median(speeds):.2f} | {median(speeds) / best:.2f} |")


if __name__ == "__main__":
    main()
