"""Servers that a run starts itself. They listen on this machine alone and end with the run."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from kserve_lmcache.bench.records import BenchmarkError
from kserve_lmcache.errors import UsageError

_READY_SECONDS = 900.0  # a large model is loaded and compiled
_STOP_SECONDS = 60.0
_TAIL = 25  # lines of a log


class Servers:
    """Starts servers, which end with the ``with`` block.

    Args:
        directory: for the logs of the servers.
        environ: of the servers. Settings of a remote store are left out.
    """

    def __init__(self, directory: Path, environ: Mapping[str, str]) -> None:
        left_out = "LMCACHE_REMOTE_"
        self._environ = {n: value for n, value in environ.items() if not n.startswith(left_out)}
        self._directory = directory
        self._processes: list[subprocess.Popen[bytes]] = []

    def redis(self, binary: str | None) -> str:
        """Start an empty Redis without persistence, and return its URL."""
        found = shutil.which(binary or "redis-server")
        if found is None:
            raise UsageError(
                f"{binary or 'redis-server'} is not there. Install it (Debian's package is "
                "redis-server), or name a Redis or Valkey with --redis-server=FILE"
            )
        url = f"redis://127.0.0.1:{free_port()}"
        options = ("--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
        self.start("redis", [found, "--port", url.rpartition(":")[2], *options], url)
        return url

    def replica(self, name: str, *flags: str, **environ: str) -> str:
        """Start ``kserve-lmcache serve``, and return its URL."""
        port = free_port()
        command = [sys.executable, "-m", "kserve_lmcache", "serve", *flags, f"--http_port={port}"]
        self.start(name, command, f"http://127.0.0.1:{port}/v2/health/ready", **environ)
        return f"http://127.0.0.1:{port}"

    def start(self, name: str, command: Sequence[str], ready_url: str, **environ: str) -> None:
        """Start a server, and wait until its health route answers 200, or its port is open."""
        log, began = self._directory / f"{name}.log", time.monotonic()
        print(f"Starting {name} (log {log})", file=sys.stderr, flush=True)
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**self._environ, **environ},
                process_group=0,  # Ctrl-C reaches the run alone, which ends its servers
            )
        self._processes.append(process)
        while not _is_ready(ready_url):
            code = process.poll()
            if code is not None or time.monotonic() - began > _READY_SECONDS:
                what = "is not ready" if code is None else f"ended with {code}"
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL:])
                raise BenchmarkError(f"{name} {what}; its log {log} ends with\n{tail}")
            time.sleep(0.1)

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _is_ready(url: str) -> bool:
    parts = urlsplit(url)
    with suppress(OSError), socket.create_connection((parts.hostname, parts.port), timeout=1):
        if parts.scheme != "http":
            return True
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310
            return bool(response.status == 200)
    return False
