"""Starts a cache server beside the engine, and ends it with the engine's server."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

logger = logging.getLogger(__name__)

_PAUSE = 5.0  # seconds until the process is started again, which forks the servers
_END_SECONDS = 8.0
# Copies of memory are not the server's work, and its threads would be the engine's rivals.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


class Supervisor:
    """A cache server that runs until :meth:`stop`.

    Args:
        file: of LMCache's configuration; the server is announced in its directory.
        size: bytes of the shared memory.
    """

    def __init__(self, file: Path, size: int) -> None:
        self._command = [sys.executable, "-m", __package__, str(file), str(size)]
        self._stopping = threading.Event()
        self._process = self._start()
        # The kernel ends the process with the thread that started it, so this one stays.
        threading.Thread(target=self._watch, name="cache-server", daemon=True).start()

    def stop(self) -> None:
        """End the server, which writes what it has queued."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._process.terminate()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 (this package)
            self._command, stdin=subprocess.DEVNULL, env={**os.environ, **_ONE_THREAD}
        )

    def _watch(self) -> None:
        while True:
            code = self._process.wait()
            if self._stopping.is_set():
                return
            logger.error(
                "The process of the cache server ended with %d; it is started again in %g s",
                code,
                _PAUSE,
            )
            if self._stopping.wait(_PAUSE):
                return
            self._process = self._start()
