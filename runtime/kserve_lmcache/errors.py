"""What can go wrong, as the user is told it.

KServeLMCacheError             every error of this package; ``exit_code`` is the process's
├── UsageError                 a flag is unknown or its value cannot be used
├── ConfigurationError         the LMCache configuration has mistakes (all of them, at once)
├── IdentityError              the model's content cannot be told (identity/errors.py)
├── UnsupportedModelError      LMCache would get the model's KV wrong
├── OffloadUnavailableError    offloading was required and could not be started
└── EngineDiedError            the engine died while it was serving
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kserve_lmcache.redaction import redact_urls


class KServeLMCacheError(Exception):
    """Base of every error that is shown to the user without a traceback."""

    exit_code = 1


class UsageError(KServeLMCacheError):
    """A command-line flag or an environment variable of the process cannot be used."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One mistake: what is wrong, where it came from, how to fix it.

    As a text it shows no password of any URL.
    """

    message: str
    source: str
    fix: str

    def __str__(self) -> str:
        return redact_urls(f"{self.source}: {self.message}. {self.fix}")


class ConfigurationError(KServeLMCacheError):
    """The LMCache configuration cannot be used; carries every problem that was found."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        heading = f"{count} problem{'s' if count != 1 else ''} in the LMCache configuration:"
        super().__init__("\n".join([heading, *(f"  - {problem}" for problem in self.problems)]))


class UnsupportedModelError(KServeLMCacheError):
    """The model's KV must not be offloaded; carries every reason."""

    exit_code = 2

    def __init__(self, reasons: Sequence[str]) -> None:
        self.reasons = tuple(reasons)
        super().__init__(
            f"this model's KV cache cannot be offloaded: {'; '.join(self.reasons)}. "
            "Serve it without offloading by --offload=off or --offload-required=false."
        )


class OffloadUnavailableError(KServeLMCacheError):
    """Offloading is required (the default) but LMCache did not start in the engine."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"KV-cache offloading could not start: {reason}. "
            "Fix the cause, or serve without offloading by --offload-required=false."
        )


class EngineDiedError(KServeLMCacheError):
    """vLLM's engine died under a running server (``exit_on_engine_death``)."""
