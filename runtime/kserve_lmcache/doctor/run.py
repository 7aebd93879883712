"""The table of checks, and how the checks run side by side in bounded time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import wait
from dataclasses import replace
from functools import partial

from kserve_lmcache.doctor import cache_server, machine, model_files, store
from kserve_lmcache.doctor.check import Check, Finding, failure, in_order, in_thread
from kserve_lmcache.doctor.context import Context

# In the order of the report.
CHECKS: tuple[Check[Context], ...] = (
    Check("hash seed", machine.hash_seed),
    Check("versions", machine.versions),
    Check("memory", machine.memory),
    Check("directories", machine.server_directories),
    Check("compile cache", machine.compile_cache),
    Check("local disk", machine.local_disk),
    Check("cache server", cache_server.cache_server),
    Check("accelerator", machine.accelerator),
    Check("model", model_files.model),
    Check("remote store", store.store),
)

# The rest of the time is for a store that hangs only after it has received a whole chunk.
_SHARE_OF_ONE_ANSWER = 0.3
# The rest is for the checks that follow, one of which may hang.
_SHARE_OF_TRIES = 0.6


def examine(
    context: Context,
    checks: Sequence[Check[Context]] = CHECKS,
    timeout: float = 10.0,
    patient: bool = False,
) -> list[Finding]:
    """Runs the checks at the same time, each in a thread of its own.

    Args:
        context: what the checks look at.
        checks: the checks.
        timeout: in seconds. A check that takes longer becomes a failure; its thread continues.
        patient: whether a store that cannot be reached is tried again for a part of the time.
    """
    context = replace(
        context,
        timeout=min(context.timeout, timeout * _SHARE_OF_ONE_ANSWER),
        patience=timeout * _SHARE_OF_TRIES if patient else 0.0,
    )
    found: list[list[Finding]] = [[] for _ in checks]
    runs = [
        in_thread(partial(_run, check, context, findings))
        for check, findings in zip(checks, found, strict=True)
    ]
    _, hanging = wait(runs, timeout)
    report = []
    for check, run, findings in zip(checks, runs, found, strict=True):
        report += findings
        if run in hanging:
            slow = failure(
                f"did not answer within {timeout:g} s",
                "Something that the check asks hangs: look at the storage, the name service and "
                "the network of this machine, then run the check again.",
            )
            report.append(replace(slow, name=check.name, seconds=timeout))
    return report


def _run(check: Check[Context], context: Context, findings: list[Finding]) -> None:
    start = time.monotonic()
    for finding in in_order((check,), context, context.quote):
        findings.append(replace(finding, seconds=time.monotonic() - start))
        start = time.monotonic()
