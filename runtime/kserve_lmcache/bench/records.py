"""The log of a run: JSON Lines, one line for each event. Every figure is made from the log.

The first line has the type ``run`` and says what was measured. Each request that ended has a line
of the type ``request``. A turn of load ends with vLLM's figures, in a line of the type ``figures``.
The last line has the type ``end``; an interrupted run has no such line.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kserve_lmcache.errors import KServeLMCacheError, UsageError

FORMAT = 2
# Prompts of the sweep: a new one, and the same one on the replica that has it or on another one.
COLD, SAME, OTHER = KINDS = ("cold", "same replica", "other replica")


class BenchmarkError(KServeLMCacheError):
    """A server or a store is not there, or does not answer as expected."""


@dataclass(frozen=True)
class Record:
    """One request. Times are in seconds."""

    endpoint: str  # label
    replica: int  # number of the replica that answered
    phase: str  # for example "concurrency 4"
    index: int  # equal indices are a pair of requests to two endpoints
    length: int  # wanted prompt tokens
    started: float  # after the begin of the phase
    e2e: float  # until the last token or the error
    ttft: float | None = None  # until the first token
    prompt_tokens: int | None = None  # as the endpoint counts them
    output_tokens: int | None = None  # as the endpoint counts them
    kind: str = ""  # one of KINDS, in a sweep
    cached_tokens: int | None = None  # prompt tokens from a cache, if the endpoint counts them
    remote_bytes: int | None = None  # sent by the store during the request
    bare_seconds: float | None = None  # reading as many bytes from it through a bare socket
    error: str | None = None

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first one."""
        later = (self.output_tokens or 0) - 1
        return (self.e2e - self.ttft) / later if self.ttft is not None and later > 0 else None


@dataclass(frozen=True)
class Log:
    """The content of a log."""

    run: dict[str, Any]
    requests: list[Record]
    figures: list[dict[str, Any]]
    complete: bool

    @property
    def labels(self) -> list[str]:
        """Of the endpoints, in their order."""
        return [endpoint["label"] for endpoint in self.run["endpoints"]]


def writer(path: Path) -> Callable[[str, Any], None]:
    """A function that appends a line of a type to a new log, which is in the file at once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("x", encoding="utf-8", buffering=1)
    except OSError as error:
        raise UsageError(f"the log {path} cannot be written: {error.strerror}") from error

    def write(kind: str, values: Any) -> None:
        fields = asdict(values) if isinstance(values, Record) else values
        file.write(json.dumps({"type": kind, **fields}) + "\n")

    return write


def read(path: Path) -> Log:
    """Read a log. A last line that is cut off is ignored."""
    lines: dict[str, list[dict[str, Any]]] = {"run": [{}], "request": [], "figures": [], "end": []}
    try:
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                fields = json.loads(line)
                lines[fields.pop("type")].append(fields)
        requests = [Record(**fields) for fields in lines["request"]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"the log {path} cannot be read: {error}") from error
    run = lines["run"][-1]
    if run.get("format") != FORMAT:
        raise UsageError(f"{path} is not a log of format {FORMAT}")
    return Log(run, requests, lines["figures"], complete=bool(lines["end"]))
