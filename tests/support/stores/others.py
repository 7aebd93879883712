"""Stores that do not speak Redis's protocol, and a port where nobody answers."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.support.ports import free_port
from tests.support.processes import Process


@contextmanager
def lm_server(directory: Path) -> Iterator[tuple[str, int]]:
    """LMCache's own server process: its host and port."""
    address = ("127.0.0.1", free_port())
    command = [sys.executable, "-m", "lmcache.v1.server", address[0], str(address[1]), "cpu"]
    process = Process(command, directory / "lm_server.log")
    try:
        process.wait_until(lambda: listens(address), seconds=60)
        yield address
    finally:
        process.stop()


@contextmanager
def silent_server() -> Iterator[tuple[str, int]]:
    """A port that accepts connections and never answers: its host and port."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield listener.getsockname()


def listens(address: tuple[str, int]) -> bool:
    with closing(socket.socket()) as client:
        return client.connect_ex(address) == 0
