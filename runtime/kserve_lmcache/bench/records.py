"""The raw log: JSON Lines, one record a line, written as it comes. Every figure is made from it.

========  =========================================================================
``type``  Holds
========  =========================================================================
run       what was asked for: the first line
request   one request that ended, well or with an error
scrape    an endpoint's cumulative cache counters at a time
server    a server that the run started itself, with its seconds to ready
end       the last line; ``interrupted`` after Ctrl-C. Without it the run was killed
========  =========================================================================

All times are seconds on one clock, which is 0 when the run began.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from kserve_lmcache.errors import UsageError

FORMAT = 1


@dataclass(frozen=True)
class Record:
    """One request.

    Attributes:
        endpoint: the label of what was asked.
        replica: which of its replicas.
        workload: of it.
        phase: the arrivals, as ``concurrency 8``.
        index: of the request in its workload: the same index is the same prompt's shape on every
            endpoint.
        kind: cold, warm local or warm remote where the workload knows it, else empty.
        length: prompt tokens that were wanted; without what a chat template adds.
        slice: number of the stretch of time in which this endpoint alone was loaded.
        due: when it should have been sent; ``None`` in a closed loop.
        started: when it was sent.
        ttft: seconds until the first token; ``None`` when there was none or nothing was streamed.
        e2e: seconds until the last token, or the error.
        gaps: seconds between the pieces of the answer.
        prompt_tokens: by the endpoint's usage.
        output_tokens: by the endpoint's usage.
        cached_tokens: by the endpoint's usage; ``None`` where it does not say.
        remote_bytes: what the store sent meanwhile, where the run could see it.
        bare_seconds: how long as many bytes took from the same store through a bare socket.
        error: what went wrong, or ``None``.
    """

    endpoint: str
    replica: int
    workload: str
    phase: str
    index: int
    length: int
    started: float
    e2e: float
    kind: str = ""
    session: int | None = None
    turn: int = 0
    slice: int = 0
    due: float | None = None
    ttft: float | None = None
    gaps: Sequence[float] = ()
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    remote_bytes: int | None = None
    bare_seconds: float | None = None
    error: str | None = None

    @property
    def tpot(self) -> float | None:
        """Seconds per output token after the first one."""
        if self.ttft is None or self.output_tokens is None or self.output_tokens < 2:
            return None
        return (self.e2e - self.ttft) / (self.output_tokens - 1)

    @property
    def ended(self) -> float:
        """When its last token came."""
        return self.started + self.e2e


@dataclass(frozen=True)
class Scrape:
    """Cumulative counters of one replica.

    Attributes:
        at: seconds after the run began.
        counters: by name; see :mod:`kserve_lmcache.bench.tiers`.
    """

    endpoint: str
    replica: int
    phase: str
    at: float
    counters: dict[str, float]


@dataclass
class Log:
    """What a log holds.

    Attributes:
        run: what was asked for.
        requests: in the order of their ends.
        scrapes: in the order of their times.
        servers: that the run started.
        complete: whether the log has its last line.
        interrupted: whether the run was ended before its time.
    """

    run: dict[str, Any] = field(default_factory=dict)
    requests: list[Record] = field(default_factory=list)
    scrapes: list[Scrape] = field(default_factory=list)
    servers: list[dict[str, Any]] = field(default_factory=list)
    complete: bool = False
    interrupted: bool = False

    def endpoints(self) -> list[str]:
        """Labels, in the order in which they were given."""
        named = [each["label"] for each in self.run.get("endpoints", [])]
        return list(dict.fromkeys([*named, *(record.endpoint for record in self.requests)]))


class Writer:
    """Writes a log; each line is in the file when the call returns.

    Raises:
        UsageError: the file exists already, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("x", encoding="utf-8", buffering=1)
        except OSError as error:
            raise UsageError(f"the log {path} cannot be written: {error.strerror}") from error

    def run(self, **values: Any) -> None:
        """The first line."""
        self._write("run", {"format": FORMAT, **values})

    def request(self, record: Record) -> None:
        """A request that ended."""
        self._write("request", asdict(record))

    def scrape(self, scrape: Scrape) -> None:
        """Counters of a replica."""
        self._write("scrape", asdict(scrape))

    def server(self, **values: Any) -> None:
        """A server that was started."""
        self._write("server", values)

    def end(self, interrupted: bool) -> None:
        """The last line."""
        self._write("end", {"interrupted": interrupted})

    def _write(self, kind: str, values: dict[str, Any]) -> None:
        self._file.write(json.dumps({"type": kind, **values}) + "\n")

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()


def read(path: Path) -> Log:
    """A log; a last line that was cut off while it was written is left out.

    Raises:
        UsageError: the file cannot be read or is not such a log.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the log {path} cannot be read: {error}") from error
    log = Log()
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            kind = values.pop("type")
            if kind == "run":
                if values.get("format") != FORMAT:
                    raise UsageError(f"{path} is of format {values.get('format')}, not {FORMAT}")
                log.run = values
            elif kind == "request":
                log.requests.append(Record(**values))
            elif kind == "scrape":
                log.scrapes.append(Scrape(**values))
            elif kind == "server":
                log.servers.append(values)
            elif kind == "end":
                log.complete, log.interrupted = True, values["interrupted"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):
                break
            raise UsageError(f"{path}:{number} is not a line of such a log: {error}") from error
    if not log.run:
        raise UsageError(f"{path} does not begin as a log of kserve-lmcache bench does")
    return log


def merged(logs: Iterable[Log]) -> Log:
    """Several logs as one; labels that two of them share get the number of their log."""
    logs = list(logs)
    if len(logs) == 1:
        return logs[0]
    seen = [label for log in logs for label in log.endpoints()]
    total = Log(run={"endpoints": [], "merged": [log.run for log in logs]}, complete=True)
    for number, log in enumerate(logs, start=1):
        names = {
            label: label if seen.count(label) == 1 else f"{label} #{number}"
            for label in log.endpoints()
        }
        total.run["endpoints"] += [{"label": name} for name in names.values()]
        total.requests += [
            Record(**{**asdict(each), "endpoint": names[each.endpoint]}) for each in log.requests
        ]
        total.scrapes += [
            Scrape(**{**asdict(each), "endpoint": names.get(each.endpoint, each.endpoint)})
            for each in log.scrapes
        ]
        total.servers += log.servers
        total.complete = total.complete and log.complete
        total.interrupted = total.interrupted or log.interrupted
    return total
