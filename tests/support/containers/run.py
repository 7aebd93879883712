"""A container that a test has started, by a line of the documentation or by options."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.support.containers.engine import Engine

_numbers = itertools.count()


@dataclass(frozen=True)
class Container:
    """A container that runs or has ended."""

    engine: Engine
    name: str

    def inspect(self) -> dict[str, Any]:
        (found,) = json.loads(self.engine.docker("inspect", self.name).stdout)
        return dict(found)

    @property
    def state(self) -> dict[str, Any]:
        return dict(self.inspect()["State"])

    @property
    def address(self) -> str:
        """On its first network."""
        networks = self.inspect()["NetworkSettings"]["Networks"]
        return next(str(each["IPAddress"]) for each in networks.values())

    def logs(self) -> str:
        result = self.engine.docker("logs", self.name)
        return result.stdout + result.stderr

    def execute(self, *command: str, user: str | None = None) -> str:
        as_user = ["--user", user] if user else []
        return self.engine.docker("exec", *as_user, self.name, *command).stdout

    def owners(self) -> set[str]:
        """The ids of the users of its first process and of those that this one started.

        What Docker starts beside it, a health check or ``docker exec``, is root's for a moment.
        """
        lines = self.engine.docker("top", self.name, "-o", "pid,ppid,uid").stdout.splitlines()
        rows = [line.split() for line in lines[1:]]
        family = {str(self.state["Pid"])}
        while found := {pid for pid, parent, _ in rows if parent in family} - family:
            family |= found
        return {uid for pid, _, uid in rows if pid in family}

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> float:
        """Returns after how many seconds; fails with the log."""
        start = time.monotonic()
        while not ready():
            state = self.state
            assert state["Running"], f"{self.name} ended: {state}\n{self.logs()[-6000:]}"
            waited = time.monotonic() - start
            assert waited < seconds, f"{self.name}: not after {seconds} s\n{self.logs()[-6000:]}"
            time.sleep(0.5)
        return time.monotonic() - start

    def wait(self, seconds: float) -> int:
        """The exit code."""
        return int(self.engine.docker("wait", self.name, seconds=seconds).stdout)

    def stop(self) -> tuple[int, float]:
        """``docker stop``, which kills after 10 s: the exit code, and the seconds."""
        start = time.monotonic()
        self.engine.docker("stop", self.name)
        return int(self.state["ExitCode"]), time.monotonic() - start


@contextmanager
def started(engine: Engine, *words: str) -> Iterator[Container]:
    """A container of the words after ``docker run``; it is removed at the end."""
    name = f"kserve-lmcache-tests-{os.getpid()}-{next(_numbers)}"
    engine.docker("run", "--detach", "--name", name, *words)
    try:
        yield Container(engine, name)
    finally:
        engine.docker("rm", "--force", "--volumes", name, check=False)


def words_of(line: str) -> list[str]:
    """What follows ``docker run`` in a line of the documentation."""
    docker, run, *words = shlex.split(line.replace("\\\n", " "))
    assert (docker, run) == ("docker", "run"), line
    return words
