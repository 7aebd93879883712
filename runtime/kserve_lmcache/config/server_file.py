"""What a live server tells the commands that run beside it: the file ``server.json``.

The file is in the server's own directory (:mod:`.metrics_directory`) as long as the server lives.
Only the server's user may read the file. It has no secret, and nothing of the server's command line
but the values of the configuration.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from kserve_lmcache.config import metrics_directory
from kserve_lmcache.config.configuration import Shown
from kserve_lmcache.config.engine_shape import EngineShape

_NAME = "server.json"
_LARGEST_FILE = 2**22  # bytes
_PROGRAM = "kserve-lmcache"
_MODULES = ("kserve_lmcache", "kserve_lmcache.cli.command")


@dataclass(frozen=True)
class RunningServer:
    """A server that lives.

    Attributes:
        pid: the number of its process.
        port: of HTTP.
        version: of this package.
        shown: its configuration in force, without secrets.
        shape: the sizes of its engine's KV cache; ``None`` without offloading.
    """

    pid: int
    port: int
    version: str
    shown: Shown
    shape: EngineShape | None = None

    def __str__(self) -> str:
        return f"pid {self.pid} (port {self.port})"


def write(directory: Path, server: RunningServer) -> None:
    """Write the file, in one step: a reader sees all of it or nothing.

    Raises:
        OSError: the directory cannot be written.
    """
    content = {
        "pid": server.pid,
        "port": server.port,
        "version": server.version,
        "configuration": server.shown.encode(),
        "shape": None if server.shape is None else asdict(server.shape),
    }
    # mkstemp's mode is 0600.
    file, new = tempfile.mkstemp(prefix=f"{_NAME}.", dir=directory)
    with os.fdopen(file, "w", encoding="utf-8") as opened:
        json.dump(content, opened, default=str)
    Path(new).replace(directory / _NAME)


def running(environ: Mapping[str, str]) -> list[RunningServer]:
    """The live servers of this user whose directories are where this process would make its own.

    Args:
        environ: the environment of this process.
    """
    found = (_read(each / _NAME) for each in metrics_directory.of_live_servers(environ))
    return sorted((each for each in found if each is not None), key=lambda each: each.pid)


def _read(path: Path) -> RunningServer | None:
    """The server of a file; ``None`` when the file is another, or not there yet."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_LARGEST_FILE))
        shape = content["shape"]
        return RunningServer(
            pid=int(content["pid"]),
            port=int(content["port"]),
            version=str(content["version"]),
            shown=Shown.decode(content["configuration"]),
            shape=None if shape is None else EngineShape(**shape),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def flags_of(pid: int, proc: Path = Path("/proc")) -> list[str] | None:
    """The flags with which a server was started. They may hold a secret: never show them.

    Args:
        pid: of the server.
        proc: the directory of processes.

    Returns:
        None when the process is no server, or is another user's.
    """
    try:
        line = (proc / str(pid) / "cmdline").read_bytes()
    except OSError:
        return None
    arguments = [os.fsdecode(each) for each in line.split(b"\0")[:-1]]
    for position, argument in enumerate(arguments):
        is_module = argument in _MODULES and arguments[position - 1] == "-m"
        if is_module or Path(argument).name == _PROGRAM:
            flags = arguments[position + 1 :]
            return flags[1:] if flags[:1] == ["serve"] else flags
    return None
