"""Servers that a run starts itself: replicas of this runtime, and a Redis that they share.

They listen on this machine alone, begin empty, and end with the run.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from kserve_lmcache.bench.targets import Target
from kserve_lmcache.errors import KServeLMCacheError, UsageError

WITH, WITHOUT = "offload", "no offload"

_READY_SECONDS = 900.0  # a large model is loaded and compiled
_STOP_SECONDS = 60.0
_TAIL = 25  # lines of a log


class StartError(KServeLMCacheError):
    """A server of the run's own ended, or did not become ready."""


class Own:
    """Starts servers; use as ``with running(…) as own``."""

    def __init__(self, directory: Path, flags: Sequence[str], environ: Mapping[str, str]) -> None:
        self._directory = directory
        self._flags = list(flags)
        self._environ = dict(environ)
        self._processes: list[subprocess.Popen[bytes]] = []
        self.redis_url = ""
        self.seconds_to_ready: dict[str, float] = {}

    def start_redis(self, binary: str | None) -> None:
        """An empty Redis without persistence.

        Raises:
            StartError: it did not start.
            UsageError: there is none.
        """
        found = shutil.which(binary or "redis-server") or shutil.which("valkey-server")
        if found is None or (binary and shutil.which(binary) is None):
            raise UsageError(
                f"{binary or 'redis-server'} is not there. Install it (Debian's package is "
                "redis-server), or name one by --redis-server=FILE"
            )
        port = _free_port()
        command = [found, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        self._start("redis", [*command, "--appendonly", "no"], self._environ, _accepts(port))
        self.redis_url = f"redis://127.0.0.1:{port}"

    def start_pair(self) -> Target:
        """Two replicas that share the Redis.

        Raises:
            StartError: one did not start.
        """
        environ = {**self._environ, "LMCACHE_REMOTE_URL": self.redis_url}
        urls = [self._serve(f"replica-{number}", environ) for number in (1, 2)]
        return Target(WITH, tuple(urls))

    def start_without(self) -> Target:
        """One with the same flags, and offloading off.

        Raises:
            StartError: it did not start.
        """
        return Target(WITHOUT, (self._serve("no-offload", self._environ, "--offload=off"),))

    def stop(self) -> None:
        """End all of them, by force what does not end in a minute."""
        for process in reversed(self._processes):
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _serve(self, name: str, environ: Mapping[str, str], *flags: str) -> str:
        port = _free_port()
        command = [sys.executable, "-m", "kserve_lmcache", "serve", *self._flags, *flags]
        url = f"http://127.0.0.1:{port}"
        self._start(name, [*command, f"--http_port={port}"], environ, _answers(url))
        return url

    def _start(
        self,
        name: str,
        command: Sequence[str],
        environ: Mapping[str, str],
        ready: Callable[[], bool],
    ) -> None:
        log = self._directory / f"{name}.log"
        start = time.monotonic()
        print(f"Starting {name} (log {log})", file=sys.stderr, flush=True)
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environ),
                # Ctrl-C is the run's alone, which then ends them.
                start_new_session=True,
            )
        self._processes.append(process)
        while not ready():
            if process.poll() is not None or time.monotonic() - start > _READY_SECONDS:
                ended = process.poll()
                what = "is not ready" if ended is None else f"ended with {ended}"
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL:])
                raise StartError(f"{name} {what}; its log {log} ends with\n{tail}")
            time.sleep(0.1)
        self.seconds_to_ready[name] = time.monotonic() - start


@contextmanager
def running(directory: Path, flags: Sequence[str], environ: Mapping[str, str]) -> Iterator[Own]:
    """Servers that end with the ``with``.

    Args:
        directory: for their logs.
        flags: of ``kserve-lmcache serve``.
        environ: of the servers; the settings of a remote store in it are left out.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if not name.startswith(("LMCACHE_REMOTE_", "PROMETHEUS_MULTIPROC_DIR"))
    }
    own = Own(directory, flags, kept)
    try:
        yield own
    finally:
        own.stop()


def _answers(url: str) -> Callable[[], bool]:
    def ready() -> bool:
        try:
            with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=5) as response:  # noqa: S310
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    return ready


def _accepts(port: int) -> Callable[[], bool]:
    def ready() -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    return ready


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
