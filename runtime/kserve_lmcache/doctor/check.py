"""A check, its findings, and how checks run one after the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Generic, TypeVar

T = TypeVar("T")
_PAUSE = 0.5  # seconds between two tries of a check


class Status(StrEnum):
    """The meaning of a finding."""

    OK = "ok"
    WARNING = "warning"  # the server works, but worse than possible
    FAILURE = "failure"  # the server does not start, or does not offload
    SKIPPED = "skipped"  # the check did not run; the evidence is the reason


@dataclass(frozen=True)
class Finding:
    """One result of a check."""

    status: Status
    evidence: str  # what the check saw
    fix: str = ""  # what the user has to do; empty when nothing is wrong
    name: str = ""  # of the check; empty until the check has ended
    seconds: float = 0.0  # duration of the check


# Each takes the evidence; a warning and a failure take a fix too.
ok = partial(Finding, Status.OK)
warning = partial(Finding, Status.WARNING)
failure = partial(Finding, Status.FAILURE)
skipped = partial(Finding, Status.SKIPPED)


@dataclass(frozen=True)
class Check(Generic[T]):
    """A check of a ``T``."""

    name: str
    run: Callable[[T], Finding | Iterable[Finding]]
    needs: tuple[str, ...] = ()  # names of earlier checks, all of which must not have failed
    # Whether a failure may pass by itself: a network plugin opens the way of a pod some seconds
    # after its start, and a name is known when the first pod behind it is ready.
    may_pass: bool = False


def in_order(
    checks: Iterable[Check[T]],
    subject: T,
    quote: Callable[[object], str],
    patience: float = 0.0,
) -> Iterator[Finding]:
    """Runs the checks of ``subject`` one after the other.

    Args:
        checks: the checks.
        subject: what they look at.
        quote: hides passwords in errors.
        patience: seconds from now in which a failure that may pass is looked at again.
    """
    end = time.monotonic() + patience
    failed: dict[str, str] = {}  # the name of the check that failed, by the checks without result
    for check in checks:
        cause = next((failed[name] for name in check.needs if name in failed), None)
        findings: Iterable[Finding] = (skipped(f"needs {cause}"),)
        if not cause:
            findings = _run(check, subject, quote)
            if check.may_pass:
                findings = _again(list(findings), partial(_run, check, subject, quote), end)
        for finding in findings:
            if cause or finding.status is Status.FAILURE:
                failed[check.name] = cause or check.name
            yield replace(finding, name=finding.name or check.name)


def _run(check: Check[T], subject: T, quote: Callable[[object], str]) -> Iterator[Finding]:
    try:
        findings = check.run(subject)
        yield from (findings,) if isinstance(findings, Finding) else findings
    except Exception as error:
        yield failure(
            f"the check failed by {type(error).__name__}: {quote(error)}",
            "This is a mistake of the check, not of the set-up: report it with this line.",
        )


def _again(
    findings: list[Finding], run: Callable[[], Iterator[Finding]], end: float
) -> list[Finding]:
    """Runs a check again until nothing fails, or until the moment ``end``."""
    start, tries = time.monotonic(), 1
    while any(each.status is Status.FAILURE for each in findings):
        if time.monotonic() + _PAUSE > end:
            break
        time.sleep(_PAUSE)
        findings, tries = list(run()), tries + 1
    if tries == 1:
        return findings
    text = f"({tries} tries in {time.monotonic() - start:.0f} s)"
    return [replace(each, evidence=f"{each.evidence} {text}") for each in findings]


def in_thread(function: Callable[[], T]) -> Future[T]:
    """Calls the function in a thread that does not delay the end of the process."""
    future: Future[T] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, name="doctor", daemon=True).start()
    return future


def within(seconds: float, function: Callable[[], T]) -> T:
    """Calls a function that has no timeout of its own.

    Raises:
        TimeoutError: the function has not returned in time. Its thread continues.
    """
    future = in_thread(function)
    if not wait([future], seconds).done:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return future.result()


def reason_of(error: BaseException) -> str:
    """Returns the operating system's words for the error, or else the error's own."""
    return getattr(error, "strerror", None) or str(error)


def size(count: float) -> str:
    """Returns a number of bytes in the largest unit that keeps the number at 1 or more."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def one_line(text: str) -> str:
    """Replaces line breaks and control characters, which move a terminal's cursor, by spaces."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
