"""A proxy before a server, which may encrypt, delay or damage what passes."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

Change = Callable[[bytes], bytes]


@contextmanager
def proxy_before(
    host: str,
    port: int,
    context: ssl.SSLContext | None = None,
    change: Change = lambda data: data,
) -> Iterator[int]:
    """Its port on 127.0.0.1.

    Args:
        host: of the server.
        port: of the server.
        context: for TLS towards the client.
        change: applied to each piece of the server's answers.
    """

    def serve(plain: socket.socket) -> None:
        with closing(plain), contextlib.suppress(OSError):
            plain.settimeout(10)
            client = context.wrap_socket(plain, server_side=True) if context else plain
            with client, socket.create_connection((host, port)) as server:
                _relay(client, server, change)

    def accept() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:  # closed: the test is over
                return
            threading.Thread(target=serve, args=(plain,), daemon=True).start()

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def _relay(client: socket.socket, server: socket.socket, change: Change) -> None:
    """Copies both ways in one thread: two may not use one TLS connection at once."""
    while True:
        readable: list[socket.socket] = [client]
        if not (isinstance(client, ssl.SSLSocket) and client.pending()):
            readable, _, _ = select.select([client, server], [], [])
        if client in readable:
            if not (data := client.recv(1 << 16)):
                return
            server.sendall(data)
        if server in readable:
            if not (data := server.recv(1 << 16)):
                return
            client.sendall(change(data))
