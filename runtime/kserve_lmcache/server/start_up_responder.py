"""Answers requests while the engine starts: the server is alive, and not ready.

The main thread starts the engine and cannot answer meanwhile. A thread answers on the socket that
the real server takes over later, so that no connection is refused.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from argparse import Namespace
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from kserve_lmcache.errors import UsageError

ANY_HOST = "0.0.0.0"  # noqa: S104 - the address of KServe's own server, for a container
_BACKLOG = 2048
_HANDSHAKE_SECONDS = 5.0  # the TLS handshake, and each read of a request
_POLL_SECONDS = 0.05
_LIVE = {"/": {"status": "alive"}, "/v2/health/live": {"live": True}}
_KSERVE_PATHS = ("/v1/models", "/v2/", "/metrics")


class StartUpResponder:
    """Answers on the port until :meth:`hand_over`."""

    def __init__(self, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        self.listener = listener
        self._server = _Server(listener, context)
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            args=(_POLL_SECONDS,),
            daemon=True,
            name="start-up-responder",
        )
        self._thread.start()

    def hand_over(self) -> socket.socket:
        """Stop answering; returns the socket, where new connections wait for the next server."""
        self._server.shutdown()
        self._thread.join()
        return self.listener


@contextlib.contextmanager
def listen(args: Namespace) -> Iterator[StartUpResponder]:
    """Open the server's port and answer on it, until the end of the block.

    Raises:
        UsageError: the port cannot be opened, or the certificate cannot be used.
    """
    tls = bool(args.ssl_certfile and args.ssl_keyfile)
    host = args.host or ANY_HOST
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        context = None
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(args.ssl_certfile, args.ssl_keyfile)
        # The address of all IPv6 addresses is that of all IPv4 addresses too, as in uvicorn.
        both = host == "::" and socket.has_dualstack_ipv6()
        listener = socket.create_server(
            (host, args.http_port), family=family, backlog=_BACKLOG, dualstack_ipv6=both
        )
    except OSError as error:
        raise UsageError(
            f"port {args.http_port} of {host} cannot be opened: {error}. Choose another one by "
            "--http_port and --host, or correct the files of the certificate."
        ) from error
    responder = StartUpResponder(listener, context)
    try:
        yield responder
    finally:
        responder.hand_over()
        listener.close()


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
