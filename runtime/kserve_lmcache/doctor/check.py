"""What is examined, and what a check finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from urllib.parse import quote

from kserve_lmcache.config.stores import Disk, Remote
from kserve_lmcache.redaction import REDACTED, redact_urls
from kserve_lmcache.server.announcement import Replica

MEBI = 2**20
# A chunk of a model of a billion parameters is about this large.
_DEFAULT_CHUNK_BYTES = 4 * MEBI


class Status(Enum):
    """How a finding is to be taken."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what was looked at.
        status: how it is.
        evidence: what was seen there.
        fix: what to do about it; empty when nothing has to be done.
        seconds: how long the look took.
    """

    name: str
    status: Status
    evidence: str
    fix: str = ""
    seconds: float = 0.0


def ok(name: str, evidence: str) -> Finding:
    """It is as it should be."""
    return Finding(name, Status.OK, evidence)


def warning(name: str, evidence: str, fix: str) -> Finding:
    """The server would start and work, yet worse than it could."""
    return Finding(name, Status.WARNING, evidence, fix)


def failure(name: str, evidence: str, fix: str) -> Finding:
    """The server would not start, or not offload."""
    return Finding(name, Status.FAILURE, evidence, fix)


def skipped(name: str, evidence: str) -> Finding:
    """It was not looked at, for the reason given as evidence."""
    return Finding(name, Status.SKIPPED, evidence)


def crashed(name: str, error: BaseException, remote: Remote | None) -> Finding:
    """The check itself did not work."""
    return failure(
        name,
        f"the check failed by {type(error).__name__}: {foreign(error, remote)}",
        "This is a mistake of the check, not of the set-up: report it with this line.",
    )


@dataclass(frozen=True)
class Subject:
    """What is examined.

    Attributes:
        environ: the variables that the server would start with; may hold passwords.
        remote: the remote store that is asked for.
        local_cpu_bytes: of the local CPU tier, all workers together.
        disk: the local disks that are asked for.
        chunk_bytes: of one chunk of the KV cache; 0 when unknown.
        model: directory or hub id.
        revision: of the hub id.
        model_fingerprint: how the model's content is told (``sampled``, ``full``, ``private``).
        replica: what is known of the server as one of several; ``None`` when its configuration
            has mistakes.
        patience: seconds to wait for any one answer of another program or machine.
        root: where ``/dev``, ``/proc`` and ``/sys`` are looked for.
    """

    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    remote: Remote | None = None
    local_cpu_bytes: float = 0.0
    disk: Disk | None = None
    chunk_bytes: int = 0
    model: str | None = None
    revision: str | None = None
    model_fingerprint: str = "sampled"
    replica: Replica | None = None
    patience: float = 3.0
    root: Path = Path("/")

    @property
    def value_bytes(self) -> int:
        """The size of a value to try the remote store with."""
        return self.chunk_bytes or _DEFAULT_CHUNK_BYTES


@dataclass(frozen=True)
class Check:
    """A check: ``name`` stands for it where it finds nothing by itself, because it hangs."""

    name: str
    run: Callable[[Subject], Iterator[Finding]]


def foreign(text: object, remote: Remote | None) -> str:
    """What a library or a server said, on one line, without the remote's password.

    Servers repeat commands that they do not know, AUTH and its arguments included.
    """
    words = str(text)
    password = remote.password if remote is not None else None
    if password:
        for form in {password, repr(password)[1:-1], quote(password), quote(password, safe="")}:
            words = words.replace(form, REDACTED)
    words = redact_urls(words)
    return " ".join("".join(c if c.isprintable() else " " for c in words).split())


def size(count: float) -> str:
    """A number of bytes for people."""
    if count < 1024:
        return f"{count:.0f} B"
    units = iter(("KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while count >= 1024 * 1024 and unit != "TiB":
        count, unit = count / 1024, next(units)
    return f"{count / 1024:.1f} {unit}"
