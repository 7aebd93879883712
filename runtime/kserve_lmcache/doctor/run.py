"""Runs the checks side by side, in bounded time."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from kserve_lmcache.doctor import accelerator, local, local_disk, model_files, store
from kserve_lmcache.doctor.check import Check, Finding, Subject, crashed, failure

# In the order of the report.
CHECKS: tuple[Check, ...] = (
    *local.CHECKS,
    local_disk.CHECK,
    accelerator.CHECK,
    model_files.CHECK,
    store.CHECK,
)

# What is left of the time is for a store that hangs only once it is sent a whole chunk.
_SHARE_OF_ONE_ANSWER = 0.3


def examine(
    subject: Subject, checks: Sequence[Check] = CHECKS, timeout: float = 10.0
) -> list[Finding]:
    """Examine ``subject``: every check's findings, in the order of ``checks``.

    Args:
        subject: what to examine.
        checks: run at the same time, each in a thread of its own.
        timeout: seconds; a check that is not done by then is reported as a failure, and goes on
            in a thread that ends with the process.
    """
    deadline = time.monotonic() + timeout
    patience = min(subject.patience, timeout * _SHARE_OF_ONE_ANSWER)
    patients = [_Examination(check, replace(subject, patience=patience)) for check in checks]
    return [finding for patient in patients for finding in patient.results(deadline, timeout)]


class _Examination:
    """One check under way."""

    def __init__(self, check: Check, subject: Subject) -> None:
        self._check = check
        self._subject = subject
        self._findings: list[Finding] = []
        self._thread = threading.Thread(target=self._run, name=f"doctor {check.name}", daemon=True)
        self._thread.start()

    def results(self, deadline: float, timeout: float) -> list[Finding]:
        self._thread.join(max(0.0, deadline - time.monotonic()))
        hangs = self._thread.is_alive()
        findings = self._findings.copy()
        if hangs:
            findings.append(
                failure(
                    self._check.name,
                    f"did not answer within {timeout:g} s",
                    "Something that it asks hangs: look at the storage, the name service and the "
                    "network of this machine, then run it again.",
                )
            )
            findings[-1] = replace(findings[-1], seconds=timeout)
        return findings

    def _run(self) -> None:
        start = time.monotonic()
        try:
            for finding in self._check.run(self._subject):
                self._findings.append(replace(finding, seconds=time.monotonic() - start))
                start = time.monotonic()
        except Exception as error:
            finding = crashed(self._check.name, error, self._subject.remote)
            self._findings.append(replace(finding, seconds=time.monotonic() - start))
