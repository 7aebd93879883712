"""The road by which the server asks a worker to do something beside the engine's steps.

A worker listens on a Unix socket in the server's private directory. A message is a line of JSON,
``{"name": …, "arguments": {…}}``, and so is its answer, ``{"answer": …}`` or ``{"error": text}``.
A call of vLLM's to its workers is no alternative: it waits for the step, and wakes idle workers.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import socketserver
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm.logger import init_logger

from kserve_lmcache.connector.steering import Steering
from kserve_lmcache.identity.tag import Selection

logger = init_logger(__name__)

_FILE = "control-{}"
_SECONDS = 60.0  # that a message may take to arrive


def socket_path(directory: Path, rank: int) -> Path:
    """The socket of a worker.

    Args:
        directory: the server's, which nobody else may enter.
        rank: of the worker.
    """
    return directory / _FILE.format(rank)


class Control(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers messages, each in a daemon thread, until :meth:`close`.

    Args:
        path: of the socket; one of an earlier worker is replaced.
        steering: does what is asked.

    Raises:
        OSError: there can be no socket at the path.
    """

    daemon_threads = True

    def __init__(self, path: Path, steering: Steering) -> None:
        self._steering = steering
        self._path = path
        path.unlink(missing_ok=True)
        super().__init__(str(path), _Handler)
        path.chmod(0o600)
        threading.Thread(target=self.serve_forever, name="control", daemon=True).start()

    def answer(self, message: Mapping[str, Any]) -> Any:
        """What the steering says to a message.

        Raises:
            Exception: the message is none, or the steering failed.
        """
        arguments = dict(message["arguments"])
        if (selection := arguments.get("selection")) is not None:
            arguments["selection"] = Selection(**selection)
        name = str(message["name"])
        if name.startswith("_") or not hasattr(Steering, name):
            raise ValueError(f"no message {name!r}")
        return getattr(self._steering, name)(**arguments)

    def close(self) -> None:
        """Listen no more."""
        self.shutdown()
        self.server_close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)  # noqa: PTH108

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a server that closes its connection."""


class _Handler(socketserver.StreamRequestHandler):
    server: Control
    connection: socket.socket
    timeout = _SECONDS

    def handle(self) -> None:
        line = self.rfile.readline()
        if not line:
            return
        try:
            answer = {"answer": self.server.answer(json.loads(line))}
        except Exception as error:
            # A text of an exception may quote a prompt: the log has the trace, the answer has none.
            logger.exception("A message of the server failed")
            answer = {"error": type(error).__name__}
        self.wfile.write(json.dumps(answer).encode() + b"\n")
