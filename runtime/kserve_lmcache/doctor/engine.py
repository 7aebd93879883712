"""Whether the connector loads in a process of its own, as vLLM loads it in its engine's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from kserve_lmcache.doctor.check import Check, Finding, Subject, failure, foreign, ok

NAME = "connector"

# Prints the class of vLLM's that ours is made of.
_LOAD = (
    "from kserve_lmcache.connector import KServeLMCacheConnector as ours; "
    "print(next(each for each in ours.__mro__ if each.__module__.startswith('vllm.')))"
)


def check(timeout: float) -> Check:
    """The check, whose process is ended after ``timeout`` seconds."""

    def load(subject: Subject) -> Iterator[Finding]:
        try:
            result = subprocess.run(  # noqa: S603
                [sys.executable, "-c", _LOAD],
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            yield failure(
                NAME,
                f"did not load within {timeout:g} s",
                "Importing vLLM takes seconds: look at the machine's load and storage, or raise "
                "--timeout.",
            )
            return
        lines = (result.stderr if result.returncode else result.stdout).strip().splitlines()
        last = foreign(lines[-1] if lines else f"exit status {result.returncode}", subject.remote)
        if result.returncode:
            yield failure(NAME, last, "Install the versions of one lock (requirements/).")
        else:
            yield ok(NAME, f"loads, on {last}")

    return Check(NAME, load)
