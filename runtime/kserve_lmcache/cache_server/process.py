"""The process of a cache server, and the process that starts it again.

The first process imports LMCache, which takes seconds, and forks the server. A server that dies is
forked anew within a moment. The first process has no threads, no gRPC and no shared memory, so that
a fork copies none of these.
"""

from __future__ import annotations

import ctypes
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from kserve_lmcache.cache_server.announcement import withdraw
from kserve_lmcache.metrics.registry import Gauge
from kserve_lmcache.metrics.snapshots import end_file
from kserve_lmcache.metrics.table import TABLE

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # prctl(2)
_BEAT_SECONDS = 0.5
# A server that is silent for so long is killed and started again.
_SILENT_SECONDS = 10.0
# Between two starts, doubled each time, and forgotten after a long life. The first is at once.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_LONG_LIFE = 60.0
_END_SECONDS = 5.0  # that a server has to write what it queued


@dataclass(frozen=True)
class Settings:
    """What a server is started with.

    Attributes:
        file: of LMCache's configuration, in the directory of the server.
        size: bytes of the shared memory.
    """

    file: Path
    size: int

    @property
    def directory(self) -> Path:
        """The directory of the server, its socket and its announcement."""
        return self.file.parent


Serve = Callable[[Settings], AbstractContextManager[Any]]


class _Ended(Exception):
    """A signal asks to end."""


def run(settings: Settings) -> int:
    """Keep a server running until a signal comes or the parent dies.

    Returns:
        The exit code.
    """
    _die_with_parent()
    from kserve_lmcache.cache_server import server  # takes seconds

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _raise_ended)
    pause = 0.0
    try:
        while True:
            began = time.monotonic()
            how = _run_once(settings, server.serve)
            with suppress(OSError):
                withdraw(settings.directory)
            pause = 0.0 if time.monotonic() - began > _LONG_LIFE else pause
            logger.error("The cache server %s; it is started again in %g s", how, pause)
            time.sleep(pause)
            pause = min(2 * pause or _FIRST_PAUSE, _LONGEST_PAUSE)
    except _Ended:
        withdraw(settings.directory)
        return 0


def _run_once(settings: Settings, serve: Serve) -> str:
    """Fork a server, and wait for its end. Returns how it ended, in words."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _run_child(settings, serve, writing)
    os.close(writing)
    try:
        return _watched(pid, reading)
    except _Ended:
        _end(pid)
        raise
    finally:
        os.close(reading)
        with suppress(OSError, ValueError):
            end_file(settings.directory, pid, _GAUGES.__contains__)


def _watched(pid: int, reading: int) -> str:
    heard = time.monotonic()
    while True:
        if select.select([reading], [], [], _BEAT_SECONDS)[0]:
            if not os.read(reading, 64):  # the server has ended
                return _ending(os.waitpid(pid, 0)[1])
            heard = time.monotonic()
        elif time.monotonic() - heard > _SILENT_SECONDS:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return f"was silent for {_SILENT_SECONDS:g} s and was killed"


def _end(pid: int) -> None:
    """End a server, which writes what it has queued."""
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _run_child(settings: Settings, serve: Serve, writing: int) -> NoReturn:
    """Serve until a signal comes. Does not return."""
    code = 1
    try:
        _die_with_parent()
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        with serve(settings):
            while not stop.wait(_BEAT_SECONDS):
                os.write(writing, b".")
        code = 0
    except BaseException as error:
        logger.error("The cache server failed: %s: %s", type(error).__name__, error)
    finally:
        logging.shutdown()
        os._exit(code)  # nothing of the first process is to be cleaned up here


def _ending(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


def _raise_ended(number: int, frame: FrameType | None) -> None:
    raise _Ended


def _die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies (Linux only)."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before the kernel was asked
        os._exit(1)


_GAUGES = {row.name for row in TABLE if row.kind is Gauge}
