"""No engine process outlives the server, however the server died.

vLLM loads this module in its engine and worker processes (entry point
``vllm.general_plugins``). It does nothing unless this package's server is their ancestor.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import MutableMapping

SERVER = "KSERVE_LMCACHE_SERVER_PID"

_PR_SET_PDEATHSIG = 1  # prctl(2)


def mark_server(environ: MutableMapping[str, str]) -> None:
    """Make this process the server that its children follow into death."""
    environ[SERVER] = str(os.getpid())


def follow_parent() -> None:
    """Ask the kernel to kill this process when its parent dies (Linux only)."""
    parent = multiprocessing.parent_process()
    if sys.platform != "linux" or SERVER not in os.environ or parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent.pid:  # it died before the kernel was asked
        os._exit(1)
