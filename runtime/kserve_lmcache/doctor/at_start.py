"""The checks of ``doctor`` in the log of a server that starts, one line a check."""

from __future__ import annotations

import logging
import os
import threading
from argparse import Namespace
from typing import TYPE_CHECKING

from kserve_lmcache.config.disk_tier import disk_of
from kserve_lmcache.config.local_tier import GIB
from kserve_lmcache.doctor.check import Finding, Status, Subject
from kserve_lmcache.doctor.run import examine
from kserve_lmcache.server.announcement import replica_of

if TYPE_CHECKING:
    from kserve_lmcache.engine.plan import OffloadPlan

_LEVELS = {
    Status.OK: logging.INFO,
    Status.SKIPPED: logging.INFO,
    Status.WARNING: logging.WARNING,
    # The server goes on: what it cannot do without fails by itself, and says why.
    Status.FAILURE: logging.ERROR,
}


def subject_of(args: Namespace, offload: OffloadPlan) -> Subject | None:
    """What the checks look at on a server; ``None`` when the server does not offload."""
    if offload.shape is None or offload.identity is None:
        return None
    configuration, shape = offload.configuration, offload.shape
    return Subject(
        environ=os.environ,
        remote=offload.remote,
        local_cpu_bytes=configuration.get("max_local_cpu_size") * GIB * shape.workers,
        disk=disk_of(configuration),
        chunk_bytes=configuration.get("chunk_size") * shape.kv_bytes_per_token,
        model=args.model,
        revision=args.revision,
        model_fingerprint=configuration.get("model_fingerprint"),
        replica=replica_of(args, offload),
    )


def log_findings(subject: Subject, logger: logging.Logger, timeout: float = 10.0) -> None:
    """Run the checks in a thread and log a line for each.

    Args:
        subject: this server.
        logger: gets the lines.
        timeout: of all checks together, in seconds.
    """

    def run() -> None:
        for finding in examine(subject, timeout=timeout):
            logger.log(_LEVELS[finding.status], "Check %s", line(finding))

    threading.Thread(target=run, name="doctor", daemon=True).start()


def line(finding: Finding) -> str:
    """A finding on one line."""
    fix = f". {finding.fix}" if finding.fix else ""
    return f"{finding.name}: {finding.status.value}, {finding.evidence}{fix}"
