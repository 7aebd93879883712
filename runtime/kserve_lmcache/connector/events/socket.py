"""The road from the workers to the scheduler's process: a Unix socket in the server's directory.

A message is msgpack: the worker's rank, and the changes of its tiers. Nobody but the owner of the
directory can send one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import zmq

_QUEUED = 1_000  # messages on either side


class Changes(msgspec.Struct, array_like=True):
    """What changed in a worker.

    Attributes:
        rank: of the worker in its engine.
        entries: tier, chunk, and whether the tier has the chunk now.
        listed: whether all that the tiers have has been told since ``begins``.
        begins: whether the worker tells all that its tiers have from here on.
    """

    rank: int
    entries: list[tuple[str, str, bool]]
    listed: bool = False
    begins: bool = False


def address(directory: Path, engine: int) -> str:
    """The address of an engine's socket, by the engine's number."""
    return f"ipc://{directory / f'events-{engine}'}"


class Sender:
    """A worker's end. Used by one thread.

    Args:
        where: the address.
    """

    def __init__(self, where: str) -> None:
        self._context: Any = zmq.Context()
        self._socket = _socket(self._context, zmq.PUSH)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._socket.connect(where)

    def is_connected_anew(self, seconds: float) -> bool:
        """Whether there is another receiver than at the last call; may wait for the first one.

        What was sent to the last one may be lost.
        """
        found = False
        while self._monitor.poll(0 if found else int(1000 * seconds)):
            self._monitor.recv_multipart()
            found = True
        return found

    def send(self, changes: Changes, seconds: float) -> bool:
        """Send a message, or return False where that takes too long."""
        if not self._socket.poll(int(1000 * seconds), zmq.POLLOUT):
            return False
        try:
            self._socket.send(msgspec.msgpack.encode(changes), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        """Close the socket. What is on its way is lost."""
        self._context.destroy(linger=0)


class Receiver:
    """The scheduler's end. Used by one thread.

    Args:
        where: the address.
    """

    def __init__(self, where: str) -> None:
        self._context: Any = zmq.Context()
        self._socket = _socket(self._context, zmq.PULL)
        self._socket.bind(where)
        self._decode: Callable[[bytes], Changes] = msgspec.msgpack.Decoder(Changes).decode

    def receive(self, seconds: float) -> Changes | None:
        """Wait for a message; ``None`` where none comes in time."""
        if not self._socket.poll(int(1000 * seconds)):
            return None
        return self._decode(self._socket.recv())

    def close(self) -> None:
        """Close the socket."""
        self._context.destroy(linger=0)


def _socket(context: Any, kind: int) -> Any:
    socket = context.socket(kind)
    socket.set_hwm(_QUEUED)
    socket.immediate = True  # nothing is queued for an end that is not there yet
    return socket
