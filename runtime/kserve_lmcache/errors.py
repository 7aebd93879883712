"""The errors that a user sees without a traceback.

KServeLMCacheError             base; ``exit_code`` is the exit code of the process
├── UsageError                 a flag or a variable of the process is unknown or cannot be used
├── DirectoryError             a directory that the server writes to cannot be used; lists all
├── ConfigurationError         the configuration of LMCache has problems; lists all of them
├── IdentityError              a file of the model is missing, damaged or unreadable
├── UnsupportedModelError      the KV cache of the model cannot be offloaded; lists all reasons
├── OffloadUnavailableError    offloading is required and could not start
└── EngineDiedError            the engine died while the server was running
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kserve_lmcache.redaction import redact_text


class KServeLMCacheError(Exception):
    """Base of every error that the user sees without a traceback."""

    exit_code = 1


class UsageError(KServeLMCacheError):
    """A command-line flag or an environment variable of the process cannot be used."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """A problem of the configuration. Its text hides the password of every URL.

    Attributes:
        message: what is wrong; names the key and the value.
        source: where the value came from: ``file:line``, a variable or a flag.
        fix: what the user has to do, as a sentence.
    """

    message: str
    source: str
    fix: str

    def __str__(self) -> str:
        return redact_text(f"{self.source}: {self.message}. {self.fix}")


class _ProblemsError(KServeLMCacheError):
    """Lists all problems of a ``place``, such as the configuration."""

    place = ""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        heading = f"{count} problem{'s' if count != 1 else ''} {self.place}:"
        super().__init__("\n".join([heading, *(f"  - {problem}" for problem in self.problems)]))


class ConfigurationError(_ProblemsError):
    """The configuration of LMCache has problems. ``problems`` has all of them."""

    exit_code = 2
    place = "in the LMCache configuration"


class DirectoryError(_ProblemsError):
    """The server cannot use a directory that it writes to. ``problems`` has all of them."""

    place = "with the directories that the server writes to"


class IdentityError(KServeLMCacheError):
    """A model's file is missing, damaged or unreadable: the file, the problem, and the fix."""

    def __init__(self, path: Path, message: str, fix: str) -> None:
        self.path, self.message, self.fix = path, message, fix
        super().__init__(f"{path}: {message}. {fix}")


class UnsupportedModelError(KServeLMCacheError):
    """The KV cache of the model cannot be offloaded. ``reasons`` has all reasons."""

    exit_code = 2

    def __init__(self, reasons: Sequence[str]) -> None:
        self.reasons = tuple(reasons)
        super().__init__(
            f"this model's KV cache cannot be offloaded: {'; '.join(self.reasons)}. "
            "Serve it without offloading by --offload=off or --offload-required=false."
        )


class OffloadUnavailableError(KServeLMCacheError):
    """Offloading is required, which is the default, and LMCache did not start in the engine."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"KV-cache offloading could not start: {reason}. "
            "Fix the cause, or serve without offloading by --offload-required=false."
        )


class EngineDiedError(KServeLMCacheError):
    """vLLM's engine died while the server was running, and ``exit_on_engine_death`` is on."""
