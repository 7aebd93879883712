"""Prepares the engine's processes.

vLLM loads this module in its engine and worker processes by the entry point
``vllm.general_plugins``. It does nothing in processes that this package's server did not start.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.util
import os
import signal
import sys
from collections.abc import MutableMapping
from pathlib import Path

from kserve_lmcache import logs, redaction
from kserve_lmcache.compat import importing
from kserve_lmcache.engine import failures
from kserve_lmcache.metrics import start_up_timing

_PLUGIN = "kserve_lmcache"  # the name of the entry point
_PLUGINS = "VLLM_PLUGINS"
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
    _load_always(environ)
    # As `vllm serve` does: this process has threads, which a fork does not copy.
    environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    # vLLM loads plugins once. A process that is forked all the same has the modules of this one,
    # and does not load the plugin again.
    multiprocessing.util.register_after_fork(prepare, lambda function: function())
    if engine_file is not None:
        environ[ENGINE_FILE] = str(engine_file)


def _load_always(environ: MutableMapping[str, str]) -> None:
    """Add the plugin to the list of those that vLLM loads, if a user has set one.

    A list of vLLM's own plugins would turn off what keeps passwords out of logs and ends orphans.
    vLLM reads the list in each process.
    """
    if (names := environ.get(_PLUGINS)) is None:
        return  # vLLM loads every plugin
    listed = [name for name in names.split(",") if name]
    if _PLUGIN not in listed:
        environ[_PLUGINS] = ",".join([*listed, _PLUGIN])


def prepare() -> None:
    """End this process with the server, and write its logs and errors as the server does."""
    if SERVER not in os.environ or multiprocessing.parent_process() is None:
        return
    start_up_timing.reached(start_up_timing.IMPORTED)
    importing.end()
    _follow_parent()
    logs.configure(os.environ)
    logs.leave_out_repetitions(os.environ)
    failures.hide_tracebacks(os.environ)
    if path := os.environ.get(ENGINE_FILE):
        from kserve_lmcache.config import engine_file

        redaction.redact_logs(engine_file.secrets_in(Path(path)))
    failures.report_errors(os.environ)  # without secrets, so after them


def _follow_parent() -> None:
    """Ask the kernel to kill this process when its parent dies (Linux only)."""
    parent = multiprocessing.parent_process()
    if sys.platform != "linux" or parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent.pid:  # the parent died before the kernel was asked
        os._exit(1)
