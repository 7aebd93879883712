"""A step's process, and the end of everything that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_MARK = "GPU_TEST_STEP"  # in the environment of each process of a step, servers' workers too
_GRACE = 8.0  # seconds in which a step ends its servers
_PAUSE = 0.05


class StepProcess:
    """A running step.

    Args:
        name: of the step, unique in this process.
        command: to run.
        log: file for its output.
        environ: of the process.
        directory: to run in.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        environ: Mapping[str, str],
        directory: Path,
    ) -> None:
        self._mark = f"{_MARK}={os.getpid()}-{name}"
        key, _, value = self._mark.partition("=")
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**environ, key: value},
                cwd=directory,
                process_group=0,
            )

    def wait(self, seconds: float, done: Callable[[], bool] = lambda: False) -> int | None:
        """Wait for the end, or until ``done``.

        Returns:
            The exit code; ``None`` when the process still runs.
        """
        deadline = time.monotonic() + seconds
        while (code := self._popen.poll()) is None:
            if done() or time.monotonic() > deadline:
                return None
            time.sleep(_PAUSE)
        return code

    def stop(self, grace: float = _GRACE) -> None:
        """End the step, and everything that it started: after ``grace`` seconds by force."""
        if self._popen.poll() is None:
            self._popen.terminate()
            self.wait(grace)
        for number in self.family():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(number, signal.SIGKILL)
        if self._popen.poll() is None:
            self._popen.kill()
        self._popen.wait()

    def family(self) -> list[int]:
        """The numbers of all processes that have the mark of this step."""
        mark, found = self._mark.encode(), []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if mark in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return found
