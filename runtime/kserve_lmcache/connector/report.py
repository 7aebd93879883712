"""How the server learns the state of every worker's connector.

To be asked wakes a worker of vLLM, which looks for the next call for one more second, on a core of
its own (``SpinCondition``, vllm/distributed/device_communicators/shm_broadcast.py). So it is asked
once, and from then on leaves its report in a file.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from vllm.logger import init_logger

from kserve_lmcache.config import engine_file

logger = init_logger(__name__)

_NONE: dict[str, Any] = {
    "failure": "vLLM created no KV connector",
    "config": {},
    "faults": {},
    "tiers": {},
    "moments": {},
}
# What may change.
_STATE = ("failure", "faults", "tiers")


class OffloadReporter:
    """Mixed into vLLM's worker by ``--worker-extension-cls``; called by collective RPC."""

    kserve_lmcache_thread: threading.Thread | None = None

    def kserve_lmcache_report(self) -> dict[str, Any]:
        """The report of this worker's connector; its state is left in a file from now on."""
        if self.kserve_lmcache_thread is None:
            self.kserve_lmcache_thread = threading.Thread(
                target=_leave_reports, name="offload-report", daemon=True
            )
            self.kserve_lmcache_thread.start()
        return _report()


def _leave_reports() -> None:
    while True:
        report = _report()
        try:
            engine_file.leave_report(os.getpid(), {name: report[name] for name in _STATE})
        except FileNotFoundError:
            return  # nobody reads it
        except OSError as error:  # a full disk: the server asks
            logger.debug("The report of the connector could not be left: %s", error)
        time.sleep(engine_file.REPORT_SECONDS)


def _report() -> dict[str, Any]:
    from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

    if not has_kv_transfer_group():
        return _NONE
    report: dict[str, Any] = get_kv_transfer_group().report()
    return report
