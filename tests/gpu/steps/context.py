"""What a step is given, and what it reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


class StepError(Exception):
    """What the step looks at is wrong."""


@dataclass
class Context:
    """One step.

    Attributes:
        device: ``cpu`` or ``gpu``.
        work: directory that all steps share.
        result: file for the report.
        argument: of the step.
        at_once: the most servers that start at the same time.
        facts: reported, by name.
        tables: reported, by title.
    """

    name: str
    device: str
    work: Path
    result: Path
    argument: str
    at_once: int
    facts: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, Rows] = field(default_factory=dict)

    def directory(self) -> Path:
        """A directory for this step's files."""
        path = self.work / self.name
        path.mkdir(exist_ok=True)
        return path

    def write(self, error: str = "") -> None:
        """Write the report. A reader sees the whole or nothing."""
        found: dict[str, Any] = {"facts": self.facts, "tables": self.tables}
        if error:
            found["error"] = error
        unfinished = self.result.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(found))
        unfinished.rename(self.result)

    def python(self, *arguments: str, **environ: str) -> str:
        """Run this Python with arguments, and return what it prints.

        Raises:
            StepError: it fails. The message is the end of its output.
        """
        done = self.ask(arguments, environ)
        if done.returncode:
            raise StepError(f"python {' '.join(arguments[:3])} ended with {done.returncode}")
        return done.stdout

    def ask(
        self, arguments: Sequence[str], environ: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Run this Python with arguments. The log of the step has what it says on stderr."""
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environ}, check=False
        )
        print(done.stdout, flush=True)
        return done
