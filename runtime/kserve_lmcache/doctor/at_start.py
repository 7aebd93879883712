"""The doctor's findings in the server's log, one line a check, while the engine starts."""

from __future__ import annotations

import logging
import threading

from kserve_lmcache.doctor.check import Finding, Status, Subject
from kserve_lmcache.doctor.run import examine

_LEVELS = {
    Status.OK: logging.INFO,
    Status.SKIPPED: logging.INFO,
    Status.WARNING: logging.WARNING,
    # The server goes on: what it cannot do without fails by itself, and says why.
    Status.FAILURE: logging.ERROR,
}


def log_findings(subject: Subject, logger: logging.Logger, timeout: float = 10.0) -> None:
    """Examine ``subject`` in a thread, for at most ``timeout`` seconds."""

    def run() -> None:
        for finding in examine(subject, timeout=timeout):
            logger.log(_LEVELS[finding.status], "Check %s", line(finding))

    threading.Thread(target=run, name="doctor", daemon=True).start()


def line(finding: Finding) -> str:
    """A finding on one line."""
    mend = f". {finding.mend}" if finding.mend else ""
    return f"{finding.name}: {finding.status.value}, {finding.evidence}{mend}"
