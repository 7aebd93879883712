"""Answers requests while the engine starts: the server is alive, and not ready.

The main thread starts the engine and cannot answer meanwhile. A thread answers on the socket that
the real server takes over later, so that no connection is refused.
"""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import ssl
import threading
from argparse import Namespace
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from kserve_lmcache.errors import UsageError

_EVERY_ADDRESS = ("", "::")
ANY_HOST = "0.0.0.0"  # noqa: S104 - the address of KServe's own server, for a container
_BACKLOG = 2048
_HANDSHAKE_SECONDS = 5.0  # the TLS handshake, and each read of a request
_POLL_SECONDS = 0.05
_LIVE = {"/": {"status": "alive"}, "/v2/health/live": {"live": True}}
_KSERVE_PATHS = ("/v1/models", "/v2/", "/metrics")


class StartUpResponder:
    """Answers on the port until :meth:`hand_over`."""

    def __init__(self, listeners: Sequence[socket.socket], context: ssl.SSLContext | None) -> None:
        self.listeners = list(listeners)
        self._servers = [_Server(listener, context) for listener in listeners]
        self._threads = [
            threading.Thread(
                target=server.serve_forever,
                args=(_POLL_SECONDS,),
                daemon=True,
                name="start-up-responder",
            )
            for server in self._servers
        ]
        for thread in self._threads:
            thread.start()

    def hand_over(self) -> list[socket.socket]:
        """Stop answering; returns the sockets, where new connections wait for the next server."""
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            thread.join()
        return self.listeners


@contextlib.contextmanager
def listen(args: Namespace) -> Iterator[StartUpResponder]:
    """Open the server's port and answer on it, until the end of the block.

    Raises:
        UsageError: the port cannot be opened, or the certificate cannot be used.
    """
    tls = bool(args.ssl_certfile and args.ssl_keyfile)
    try:
        context = None
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(args.ssl_certfile, args.ssl_keyfile)
        listeners = _listeners(args.host or "", args.http_port)
    except OSError as error:
        place = args.host or "any address"
        raise UsageError(
            f"port {args.http_port} of {place} cannot be opened: {error}. Choose another one by "
            "--http_port and --host, or correct the files of the certificate."
        ) from error
    responder = StartUpResponder(listeners, context)
    try:
        yield responder
    finally:
        responder.hand_over()
        for listener in listeners:
            listener.close()


def _listeners(host: str, port: int) -> list[socket.socket]:
    """Open the port on a host, or on every address of the machine.

    Clusters have addresses of IPv4, of IPv6, or of both. A socket for each: one for both would show
    clients of IPv4 under other addresses, which uvicorn does not trust as proxies.

    Args:
        host: a name or an address; empty, or ``::``, for every address of both kinds.
        port: the port.

    Raises:
        OSError: the port cannot be opened.
    """
    if host not in _EVERY_ADDRESS:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return [socket.create_server((host, port), family=family, backlog=_BACKLOG)]
    opened: list[socket.socket] = []
    try:
        for family, address in ((socket.AF_INET, ANY_HOST), (socket.AF_INET6, "::")):
            with _no_such_addresses_are_none():
                opened.append(
                    socket.create_server((address, port), family=family, backlog=_BACKLOG)
                )
    except OSError:
        for listener in opened:
            listener.close()
        raise
    if not opened:
        raise OSError(errno.EADDRNOTAVAIL, "the machine has no address of IPv4 or IPv6")
    return opened


@contextlib.contextmanager
def _no_such_addresses_are_none() -> Iterator[None]:
    """Ignore that the kernel knows no addresses of one kind."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT):
            raise


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        super().__init__(listener.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.context = context

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.settimeout(_HANDSHAKE_SECONDS)
        if self.context is not None:
            request = self.context.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore client disconnects."""


class _Handler(BaseHTTPRequestHandler):
    server_version = "kserve-lmcache"

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        body: Any = _LIVE.get(path)
        status = HTTPStatus.OK
        if body is None:
            status = HTTPStatus.SERVICE_UNAVAILABLE
            message = "The server takes no requests: the engine is starting"
            body = {"error": message}
            if not path.startswith(_KSERVE_PATHS):
                kind = "ServiceUnavailableError"
                error = {"message": message, "type": kind, "param": None, "code": status.value}
                body = {"error": error}
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Connection", "close")
        if status is not HTTPStatus.OK:
            self.send_header("Retry-After", "10")
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = _answer

    def log_message(self, format: str, *args: Any) -> None:
        """Log no request: probes come every few seconds."""
