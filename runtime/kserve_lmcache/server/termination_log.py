"""The file of a container's last words, which ``kubectl describe pod`` shows as its message."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

VARIABLE = "TERMINATION_LOG"
DEFAULT = "/dev/termination-log"
# Kubernetes shows the last 4096 bytes of the file; the first say more.
LARGEST = 4096
_CUT = "\n… (the container's log has the rest)"


def is_of_this_process() -> bool:
    """Whether the container ends with this process.

    A command of ``kubectl exec`` must not leave its own message for the end of the server.
    """
    return os.getpid() == 1 or VARIABLE in os.environ


def write(reason: str) -> None:
    """Write the reason, when this process is in a pod; makes no file, and raises nothing."""
    path = Path(os.environ.get(VARIABLE, DEFAULT))
    data = reason.encode(errors="replace")
    if len(data) > LARGEST:
        cut = _CUT.encode()
        data = data[: LARGEST - len(cut)].decode(errors="ignore").encode() + cut
    with contextlib.suppress(OSError):
        if path.exists():
            path.write_bytes(data)
