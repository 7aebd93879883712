"""A check in stages, each of which needs some of those before it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from kserve_lmcache.doctor.check import Finding, Status, Subject, crashed, skipped

Result = TypeVar("Result")


@dataclass(frozen=True)
class Stage:
    """One stage: ``run`` is called only if no stage that it ``needs`` has failed."""

    name: str
    run: Callable[[], Finding]
    needs: tuple[str, ...] = ()


def in_order(stages: Iterable[Stage], subject: Subject) -> Iterator[Finding]:
    """Run the stages; one whose needs have failed is skipped and names the one that failed."""
    failed: dict[str, str] = {}
    for stage in stages:
        cause = next((failed[name] for name in stage.needs if name in failed), None)
        if cause is not None:
            failed[stage.name] = cause
            yield skipped(stage.name, f"needs {cause}")
            continue
        try:
            finding = stage.run()
        except Exception as error:
            finding = crashed(stage.name, error, subject.remote)
        if finding.status is Status.FAILURE:
            failed[stage.name] = stage.name
        yield finding


def within(seconds: float, function: Callable[[], Result]) -> Result:
    """Call a function that knows no time-out.

    Raises:
        TimeoutError: it has not returned in time; it goes on in a thread that ends with the
            process.
    """
    outcome: queue.SimpleQueue[Result | BaseException] = queue.SimpleQueue()

    def call() -> None:
        try:
            outcome.put(function())
        except BaseException as error:
            outcome.put(error)

    threading.Thread(target=call, daemon=True).start()
    try:
        result = outcome.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(result, BaseException):
        raise result
    return result
