"""The way to a server, which can be cut, slow or lossy while clients use it.

A healthy link costs next to nothing: the kernel moves the bytes (``splice``), Python does not see
them. A network emulator of the kernel's would be nearer to a real network, but needs a module that
many kernels lack, and privileges.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.ports import free_port

_PIECE = 1 << 20
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, for 0 s
# How long a thread is stuck in a write, of struct timeval, before it looks whether all is over.
_WRITE_PATIENCE = struct.pack("ll", 0, 200_000)


class Behaviour:
    """What a link does to the bytes that pass, instead of passing them on.

    Attributes:
        ended: set when the link is healthy again.
    """

    def __init__(self) -> None:
        self.ended = threading.Event()

    def carry(self, lane: Lane, data: bytes) -> None:
        """Called in the lane's own thread for each piece that comes in.

        Raises:
            OSError: the connection is over.
        """
        raise NotImplementedError

    def finish(self, lane: Lane) -> None:
        """Called before what comes next takes another way; nothing may be left behind."""


class Lane:
    """One direction of one connection.

    Attributes:
        is_answer: whether it leads from the server to the client.
    """

    def __init__(
        self, connection: Connection, source: socket.socket, target: socket.socket, is_answer: bool
    ) -> None:
        self.connection = connection
        self.is_answer = is_answer
        self._source = source
        self._target = target

    def send(self, data: bytes) -> None:
        """Pass it on.

        Raises:
            OSError: the connection is over.
        """
        rest = memoryview(data)
        while rest:
            rest = rest[self._patiently(self._target.send, rest) :]

    def run(self, link: Link) -> None:
        """Carry everything until one side closes."""
        outlet, inlet = os.pipe()
        try:
            # Without the privilege a pipe stays at its 64 KiB, which is slower.
            with contextlib.suppress(OSError):
                fcntl.fcntl(inlet, fcntl.F_SETPIPE_SZ, _PIECE)
            before = None
            while count := os.splice(self._source.fileno(), inlet, _PIECE):
                behaviour = link.behaviour
                if before and before is not behaviour:
                    before.finish(self)
                if behaviour:
                    behaviour.carry(self, _read(outlet, count))
                else:
                    self._pass_on(outlet, count)
                before = behaviour
            if before:
                before.finish(self)
            if not self.connection.is_over:
                self._target.shutdown(socket.SHUT_WR)
        finally:
            os.close(outlet)
            os.close(inlet)

    def _pass_on(self, pipe: int, count: int) -> None:
        target = self._target.fileno()
        while count:
            count -= self._patiently(os.splice, pipe, target, count)

    def _patiently(self, write: Callable[..., int], *arguments: Any) -> int:
        while not self.connection.is_over:
            with contextlib.suppress(BlockingIOError):
                return write(*arguments)
        raise ConnectionResetError


class Connection:
    """A client's connection and the one to the server behind it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.is_over = False
        self._ends = (client, server)
        self._lanes = (
            Lane(self, client, server, False),
            Lane(self, server, client, True),
        )

    def run(self, link: Link) -> None:
        """Carry both ways until both are over."""
        threads = [
            threading.Thread(target=self._carry, args=(lane, link), daemon=True)
            for lane in self._lanes
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.is_over = True
        for end in self._ends:
            end.close()

    def reset(self) -> None:
        """End it as a machine does that has lost it: both sides get a reset."""
        self.is_over = True
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
                # Wakes the threads that wait for it; when both are gone it is closed, and so reset.
                end.shutdown(socket.SHUT_RD)

    def _carry(self, lane: Lane, link: Link) -> None:
        try:
            lane.run(link)
        except OSError:  # either side is gone
            self.reset()


class Link:
    """A port of 127.0.0.1 that leads to a server."""

    host = "127.0.0.1"

    def __init__(self, server_host: str, server_port: int) -> None:
        self._server = (server_host, server_port)
        self._connections: set[Connection] = set()
        self.behaviour: Behaviour | None = None
        self.port = free_port()
        self._listener = socket.create_server((self.host, self.port), backlog=128)
        self._accepting = self._start_accepting()

    @contextmanager
    def behaving(self, behaviour: Behaviour) -> Iterator[None]:
        """Give every connection, old and new, to ``behaviour`` for a while."""
        assert self.behaviour is None, "the link has a fault already"
        self.behaviour = behaviour
        try:
            yield
        finally:
            self.behaviour = None
            behaviour.ended.set()

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Nothing listens, and every connection is reset."""
        self._stop_accepting()
        self.reset_connections()
        try:
            yield
        finally:
            self._listener = socket.create_server((self.host, self.port), backlog=128)
            self._accepting = self._start_accepting()

    def reset_connections(self) -> None:
        for connection in list(self._connections):
            connection.reset()

    def close(self) -> None:
        self._stop_accepting()
        self.reset_connections()

    def _start_accepting(self) -> threading.Thread:
        thread = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        thread.start()
        return thread

    def _stop_accepting(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(5)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._server)
        except OSError:  # the server is down, and the client is told as it would be
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            client.close()
            return
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _WRITE_PATIENCE)
        connection = Connection(client, server)
        self._connections.add(connection)
        connection.run(self)
        self._connections.discard(connection)


@contextmanager
def link_to(host: str, port: int) -> Iterator[Link]:
    """A healthy link to a server."""
    link = Link(host, port)
    try:
        yield link
    finally:
        link.close()


def _read(pipe: int, count: int) -> bytes:
    pieces = []
    while count:
        pieces.append(os.read(pipe, count))
        count -= len(pieces[-1])
    return b"".join(pieces)
