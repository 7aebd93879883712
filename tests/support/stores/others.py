"""Stores that do not speak Redis's protocol, and a port where nobody answers."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.ports import free_port, may_listen
from tests.support.processes import Process
from tests.support.waiting import until


@dataclass
class LmStore:
    """LMCache's own server, which keeps its data in memory.

    Attributes:
        process: may be killed, and started again on the same port.
    """

    host: str
    port: int
    process: Process

    @property
    def url(self) -> str:
        return f"lm://{self.host}:{self.port}"

    def kill(self) -> None:
        """End it at once; what it holds is lost."""
        self.process.signal(signal.SIGKILL)
        self.process.wait(10)

    def start(self) -> None:
        """Start it again where it was, as soon as it may listen there.

        It does not set SO_REUSEADDR, so a connection that the killed one closed first keeps the
        port from it: in TIME_WAIT, for 60 seconds (TCP_TIMEWAIT_LEN, linux/include/net/tcp.h).
        """
        until(lambda: may_listen(self.host, self.port, reuse=False), seconds=90, pause=0.1)
        self.process = self.process.again()
        self.wait_until_it_listens()

    def wait_until_it_listens(self) -> None:
        self.process.wait_until(lambda: listens((self.host, self.port)), seconds=60)


@contextmanager
def lm_store(directory: Path) -> Iterator[LmStore]:
    """LMCache's own server process."""
    host, port = "127.0.0.1", free_port()
    command = [sys.executable, "-m", "lmcache.v1.server", host, str(port), "cpu"]
    store = LmStore(host, port, Process(command, directory / "lm_server.log"))
    try:
        store.wait_until_it_listens()
        yield store
    finally:
        store.process.stop()


@contextmanager
def lm_server(directory: Path) -> Iterator[tuple[str, int]]:
    """LMCache's own server process: its host and port."""
    with lm_store(directory) as store:
        yield store.host, store.port


@contextmanager
def silent_server() -> Iterator[tuple[str, int]]:
    """A port that accepts connections and never answers: its host and port."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield listener.getsockname()


def listens(address: tuple[str, int]) -> bool:
    with closing(socket.socket()) as client:
        return client.connect_ex(address) == 0
