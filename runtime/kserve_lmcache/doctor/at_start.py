"""The doctor's findings in the server's log, one line a check, while the engine starts.

The server then stays announced in the store that it shares, for the servers that start later.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from kserve_lmcache.doctor import redis_replicas
from kserve_lmcache.doctor.check import Finding, Status, Subject
from kserve_lmcache.doctor.run import examine

_LEVELS = {
    Status.OK: logging.INFO,
    Status.SKIPPED: logging.INFO,
    Status.WARNING: logging.WARNING,
    # The server goes on: what it cannot do without fails by itself, and says why.
    Status.FAILURE: logging.ERROR,
}


def log_findings(
    subject: Subject,
    logger: logging.Logger,
    timeout: float = 10.0,
    offloads: Callable[[], bool] = lambda: True,
    pause: float = redis_replicas.RENEWAL_SECONDS,
) -> None:
    """Examine ``subject`` in a thread, for at most ``timeout`` seconds; then keep it announced.

    Args:
        subject: this server.
        logger: gets a line a check.
        timeout: of all checks together, in seconds.
        offloads: whether it still does; else nobody shares with it.
        pause: seconds from one announcement to the next.
    """

    def run() -> None:
        for finding in examine(subject, timeout=timeout):
            logger.log(_LEVELS[finding.status], "Check %s", line(finding))
        renew = redis_replicas.renewal(subject)
        while renew is not None:
            time.sleep(pause)
            if not offloads():
                return
            if error := renew():
                logger.debug("Not announced to other servers: %s", error)

    threading.Thread(target=run, name="doctor", daemon=True).start()


def line(finding: Finding) -> str:
    """A finding on one line."""
    mend = f". {finding.mend}" if finding.mend else ""
    return f"{finding.name}: {finding.status.value}, {finding.evidence}{mend}"
