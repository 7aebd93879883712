"""Processes that a test starts: waited for by their own protocol, log shown on failure, stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import psutil

from tests.support.waiting import until

_OPENER = build_opener(ProxyHandler({}))


def send(pid: int, number: signal.Signals) -> None:
    """Sends a signal. After SIGSTOP it waits until every thread has stopped.

    One thread takes the signal, and stops the others once it runs: they go on until then.
    """
    os.kill(pid, number)
    if number == signal.SIGSTOP:
        tasks = Path(f"/proc/{pid}/task")
        until(lambda: {_state(task) for task in tasks.iterdir()} <= {"T", "Z"})


def _state(task: Path) -> str:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # the thread has ended
        return "Z"


class Process:
    """A process whose output goes to a log file."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environ: Mapping[str, str] | None = None,
        append: bool = False,
    ) -> None:
        self.log = log
        self.command = list(command)
        self._environ = environ
        with log.open("ab" if append else "wb") as output:
            self._popen = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(os.environ if environ is None else environ),
                # No session of its own: Linux shares each core among sessions then, and one whose
                # process yields again and again, as vLLM's do, left 1 % of it to another (6.18).
                process_group=0,
            )
        self.pid = self._popen.pid

    def again(self) -> Process:
        """The same command once more, after this one has ended; the log goes on."""
        assert self._popen.poll() is not None, f"{self} still runs"
        return Process(self.command, self.log, self._environ, append=True)

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait for ``ready``; fails with the log when the process ends or time runs out."""
        deadline = time.monotonic() + seconds
        pause = 0.01
        while not ready():
            if self._popen.poll() is not None:
                raise AssertionError(f"{self} ended with {self._popen.returncode}\n{self.tail()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"{self} is not ready after {seconds} s\n{self.tail()}")
            time.sleep(pause)
            pause = min(2 * pause, 0.1)

    def wait(self, seconds: float) -> int:
        """The exit code; fails with the log when it does not end in time."""
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self} still runs after {seconds} s\n{self.tail()}") from None

    def signal(self, number: signal.Signals) -> None:
        if self._popen.poll() is None:
            send(self.pid, number)

    def family(self) -> list[psutil.Process]:
        """The process and all its descendants."""
        own = psutil.Process(self.pid)
        return [own, *own.children(recursive=True)]

    def stop(self, seconds: float = 30) -> None:
        """End it and everything it started, at the latest after ``seconds`` by force."""
        if self._popen.poll() is not None:
            return
        family = self.family()
        self._popen.terminate()
        try:
            self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            for member in family:
                if member.is_running():
                    member.kill()
            self._popen.wait()

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.output().splitlines()[-lines:])

    def __str__(self) -> str:
        return f"{Path(self.command[0]).name} (log {self.log})"


def is_healthy(url: str, seconds: float = 5) -> bool:
    """Whether a health route answers 200 in time.

    Asked ten times a second beside what starts: a client of httpx costs 35 ms of a slow core.
    """
    try:
        with _OPENER.open(url, timeout=seconds) as answer:
            return bool(answer.status == 200)
    except (OSError, HTTPException):
        return False


def wait_for_end(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that still run after ``seconds``."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def last_line(process: Process) -> str:
    """The last that it wrote itself: Python's resource tracker may count its leavings after it."""
    lines = process.output().splitlines()
    return [line for line in lines if "resource_tracker" not in line][-1]
