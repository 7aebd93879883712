"""The end of a server in one line: the cause, the fix and the exit code.

The line is the last of the log, and Kubernetes shows it as the reason of the container's end.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path

from kserve_lmcache.redaction import redact_text

# The variable that names the file from which Kubernetes takes the reason of a container's end.
TERMINATION_LOG = "TERMINATION_LOG"
_LARGEST = 4096  # bytes, of what Kubernetes reads
_LINE_BREAK = re.compile(r"\s*[\r\n]+\s*(- )?")  # also in front of an item of a list


def end(reason: str, exit_code: int) -> int:
    """Write the line to the standard error and to the termination log.

    Args:
        reason: the cause and the fix; may have several lines.
        exit_code: of this process.

    Returns:
        The exit code.
    """
    # The reason may quote a library that quotes a flag.
    text = _LINE_BREAK.sub(" ", redact_text(reason).strip())
    line = f"kserve-lmcache: error: {text} (exit code {exit_code})"
    print(line, file=sys.stderr, flush=True)
    path = Path(os.environ.get(TERMINATION_LOG, "/dev/termination-log"))
    with contextlib.suppress(OSError):
        if path.exists():  # this process is in a pod
            path.write_bytes(line.encode("utf-8", "replace")[:_LARGEST])
    return exit_code
