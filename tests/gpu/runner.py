"""Runs the steps within their budgets and within the time of the whole."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from tests.gpu.plan import Step
from tests.gpu.processes import StepProcess

PASSED, FAILED, LEFT_OUT = "passed", "failed", "left out"


@dataclass(frozen=True)
class Result:
    """What came of a step.

    Attributes:
        status: ``passed``, ``failed`` or ``left out``.
        seconds: that the step took.
        reason: why it failed or was left out.
        found: what the step reported.
    """

    step: Step
    status: str
    seconds: float = 0.0
    reason: str = ""
    found: dict[str, Any] = field(default_factory=dict)


# Starts a step, which writes its report into a file.
Start = Callable[[Step, Path], StepProcess]


class Runner:
    """Runs steps until a deadline.

    Args:
        start: starts the process of a step.
        work: directory for the steps' reports.
        seconds: of the whole.
        at_once: the most steps that run at the same time.
        say: told each result.
    """

    def __init__(
        self,
        start: Start,
        work: Path,
        seconds: float,
        at_once: int = 1,
        say: Callable[[Result], None] = lambda result: None,
    ) -> None:
        self._start, self._work, self._say = start, work, say
        self._at_once = at_once
        self._deadline = time.monotonic() + seconds
        self._results: dict[str, Result] = {}
        self._staying: dict[str, StepProcess] = {}
        self._running: list[StepProcess] = []

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self._deadline - time.monotonic()

    def run(self, steps: Sequence[Step]) -> list[Result]:
        """Run all that time allows. A step that fails ends those alone that need it."""
        try:
            for number, group in enumerate(groups := list(_groups(steps))):
                with ThreadPoolExecutor(self._at_once) as pool:
                    try:
                        for result in pool.map(self._run, group):
                            self._results[result.step.name] = result
                    except BaseException:
                        self._end()  # the pool waits for its threads
                        raise
                later = [step for each in groups[number + 1 :] for step in each]
                self._stop_unneeded(later)
        finally:
            self._stop_unneeded([])
        return [self._results[step.name] for step in steps]

    def _run(self, step: Step) -> Result:
        result = self._outcome(step)
        self._say(result)
        return result

    def _outcome(self, step: Step) -> Result:
        lacking = [name for name in step.needs if self._results[name].status != PASSED]
        if lacking:
            return Result(step, LEFT_OUT, reason=f"{', '.join(lacking)} did not pass")
        if self.left < step.least:
            reason = f"{max(0, self.left):.0f} s were left, and it needs {step.least:.0f} s"
            return Result(step, LEFT_OUT, reason=reason)
        limit = min(step.budget, self.left)
        file, began = self._work / f"{step.name}.json", time.monotonic()
        file.unlink(missing_ok=True)
        process = self._start(step, file)
        self._running.append(process)
        code = process.wait(limit, done=lambda: step.stays and file.exists())
        seconds = time.monotonic() - began
        found = _read(file)
        is_ready = step.stays and code is None and bool(found) and "error" not in found
        if is_ready:
            self._staying[step.name] = process
            return Result(step, PASSED, seconds, found=found)
        process.stop()
        error = found.pop("error", "")
        if code is None and limit < step.budget:
            reason = f"the time of the whole ended after {seconds:.0f} s"
            return Result(step, LEFT_OUT, seconds, reason, found)
        if code is None:
            reason = error or f"it took longer than {limit:.0f} s"
            return Result(step, FAILED, seconds, reason, found)
        if code or error or not found:
            reason = error or f"it ended with {code} and without a report"
            return Result(step, FAILED, seconds, reason, found)
        return Result(step, PASSED, seconds, found=found)

    def _end(self) -> None:
        self._deadline = time.monotonic()
        for process in self._running:
            process.stop()

    def _stop_unneeded(self, later: Sequence[Step]) -> None:
        needed = {name for step in later for name in step.needs}
        for name in [each for each in self._staying if each not in needed]:
            self._staying.pop(name).stop()


def _groups(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """Neighbours that may run together, and every other step alone."""
    numbered = enumerate(steps)
    for _, group in groupby(numbered, lambda each: -1 if each[1].together else each[0]):
        yield [step for _, step in group]


def _read(file: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        return dict(json.loads(file.read_text()))
    return {}
