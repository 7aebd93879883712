"""The running server that a command is about, and its safety while a command runs beside it."""

from __future__ import annotations

import contextlib
import os
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path

from kserve_lmcache.config import server_file
from kserve_lmcache.config.resources import free_memory, resident_memory
from kserve_lmcache.config.server_file import RunningServer
from kserve_lmcache.errors import UsageError

_MIB = 2**20
# What a command takes at most, without vLLM and with it.
_BYTES, _ENGINE_BYTES = 100 * _MIB, 2048 * _MIB
_WORST_SCORE = "1000"


def add_flags(parser: ArgumentParser, engine: str) -> None:
    """Add the flags that choose between a running server, the flags, and vLLM.

    Args:
        parser: of a command.
        engine: the help of ``--engine``.
    """
    parser.add_argument("--pid", type=int, help="the running server to look at, where several run")
    parser.add_argument("--engine", action="store_true", help=engine)


def chosen(flags: Sequence[str], pid: int | None) -> RunningServer | None:
    """The server that a command without flags of ``serve`` is about.

    Args:
        flags: those of ``serve``.
        pid: the value of ``--pid``.

    Returns:
        None where no server runs, and where flags describe one.

    Raises:
        UsageError: no server has the number, or several servers run and none is named.
    """
    if flags:
        if pid is not None:
            raise UsageError("--pid names a running server, and other flags describe another one")
        return None
    servers = server_file.running(os.environ)
    listed = " and ".join(map(str, servers)) or "none"
    if pid is not None:
        for server in servers:
            if server.pid == pid:
                return server
        raise UsageError(f"no server of this user has the number {pid}; these run here: {listed}")
    if len(servers) > 1:
        raise UsageError(f"several servers run here: {listed}; choose one of them by --pid")
    return servers[0] if servers else None


def refuse_without_room(environ: Mapping[str, str], imports_vllm: bool) -> None:
    """Refuse a command whose memory could end a running server.

    The kernel ends a container of Kubernetes as a whole when its memory is full.

    Args:
        environ: the environment of this process.
        imports_vllm: whether the command imports vLLM.

    Raises:
        UsageError: a server runs, and its container has too little free memory.
    """
    needed, free = _ENGINE_BYTES if imports_vllm else _BYTES, free_memory()
    if free is None:
        return
    left = free.value + resident_memory()  # of which this process has taken a part already
    if left >= needed or not server_file.running(environ):
        return
    what, fix = "this command", "Run it in a container of its own"
    if imports_vllm:
        what, fix = "--engine", "Leave it out, or run the command in a container of its own"
    raise UsageError(
        f"{what} needs {needed / _MIB:.0f} MiB, and {max(left, 0) / _MIB:.0f} MiB are free "
        f"({free.source}): the kernel could end the server that runs here. {fix}."
    )


def go_first(path: Path = Path("/proc/self/oom_score_adj")) -> None:
    """Let the kernel end this process first when memory runs out.

    This needs no privilege. The processes that this one starts inherit it.

    Args:
        path: the kernel's file of this process.
    """
    with contextlib.suppress(OSError):
        path.write_text(_WORST_SCORE)
