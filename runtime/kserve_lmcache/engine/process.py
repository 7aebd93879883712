"""Prepares the engine's processes.

vLLM loads this module in its engine and worker processes by the entry point
``vllm.general_plugins``. It does nothing in processes that this package's server did not start.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import MutableMapping
from pathlib import Path

from kserve_lmcache import logs
from kserve_lmcache.metrics import start_up_timing

SERVER = "_KSERVE_LMCACHE_SERVER_PID"
ENGINE_FILE = "_KSERVE_LMCACHE_ENGINE_FILE"

_PR_SET_PDEATHSIG = 1  # prctl(2)


def mark_server(environ: MutableMapping[str, str], engine_file: Path | None) -> None:
    """Mark this process as the server, for the processes that it starts.

    Args:
        environ: the environment that they inherit.
        engine_file: the file that LMCache reads, whose secrets are kept out of their logs.
    """
    environ[SERVER] = str(os.getpid())
    if engine_file is not None:
        environ[ENGINE_FILE] = str(engine_file)


def prepare() -> None:
    """End this process with the server, write our log records, and keep secrets out of all logs."""
    if SERVER not in os.environ or multiprocessing.parent_process() is None:
        return
    start_up_timing.reached(start_up_timing.IMPORTED)
    _follow_parent()
    logs.configure(os.environ)
    logs.leave_out_repetitions(os.environ)
    if path := os.environ.get(ENGINE_FILE):
        from kserve_lmcache import redaction
        from kserve_lmcache.config import engine_file

        redaction.redact_logs(redaction.secrets_in(engine_file.read(Path(path))))


def _follow_parent() -> None:
    """Ask the kernel to kill this process when its parent dies (Linux only)."""
    parent = multiprocessing.parent_process()
    if sys.platform != "linux" or parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent.pid:  # the parent died before the kernel was asked
        os._exit(1)
