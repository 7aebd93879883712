"""The checks of ``doctor`` in the log of a server that starts, one line for each finding."""

from __future__ import annotations

import logging
import os
from argparse import Namespace
from typing import TYPE_CHECKING

from kserve_lmcache.doctor.check import Status, in_thread
from kserve_lmcache.doctor.context import Context, context_of
from kserve_lmcache.doctor.report import log_line
from kserve_lmcache.doctor.run import examine
from kserve_lmcache.engine.arguments import compiles
from kserve_lmcache.server.announcement import replica_of

if TYPE_CHECKING:
    from kserve_lmcache.engine.plan import OffloadPlan

_LEVELS = {
    Status.OK: logging.INFO,
    Status.SKIPPED: logging.DEBUG,  # a start's log fits a screen
    Status.WARNING: logging.WARNING,
    # The start continues: a server that cannot work fails by itself.
    Status.FAILURE: logging.ERROR,
}


def context_at_start(args: Namespace, offload: OffloadPlan) -> Context | None:
    """Returns what the checks look at on a server; ``None`` when the server does not offload."""
    if not offload.enabled:
        return None
    return context_of(
        offload.configuration,
        offload.shape,
        environ=os.environ,
        remote=offload.remote,
        model=args.model,
        revision=args.revision,
        replica=replica_of(args, offload),
        compiles=compiles(args),
    )


def log_findings(context: Context, logger: logging.Logger, timeout: float = 10.0) -> None:
    """Runs the checks in a thread, for ``timeout`` seconds, and logs a line for each finding."""

    def run() -> None:
        for finding in examine(context, timeout=timeout, patient=True):
            logger.log(_LEVELS[finding.status], "Check %s", log_line(finding))

    in_thread(run)
