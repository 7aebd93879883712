"""The end of a server in one line: the cause, the fix and the exit code.

The line is the last of the log, and Kubernetes shows it as the reason of the container's end.
"""

from __future__ import annotations

import re
import sys

from kserve_lmcache.redaction import redact_text
from kserve_lmcache.server import termination_log

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
    termination_log.write(line)
    return exit_code
