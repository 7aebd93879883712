"""Figures of a log's requests.

Seconds throughout; definitions in :mod:`kserve_lmcache.bench`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from kserve_lmcache.bench.records import Record

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}

# What goodput may put a limit on, by vLLM's names.
LIMITED: Mapping[str, Callable[[Record], float | None]] = {
    "ttft": lambda record: record.ttft,
    "tpot": lambda record: record.tpot,
    "e2el": lambda record: record.e2e,
}


@dataclass(frozen=True)
class Distribution:
    """Of one figure, in seconds; ``None`` where nothing was measured.

    Attributes:
        count: how many values.
    """

    count: int
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None


@dataclass(frozen=True)
class Group:
    """Requests that belong together: what a row of a table is about."""

    endpoint: str
    workload: str
    phase: str
    kind: str = ""
    length: int | None = None

    @property
    def what(self) -> str:
        """Without the endpoint, for people."""
        if self.kind:
            return f"{self.workload}, {self.length} tokens, {self.kind}"
        return f"{self.workload}, {self.phase}"


@dataclass(frozen=True)
class Summary:
    """The figures of a group.

    Attributes:
        requests: how many ended.
        errors: how many of them with an error, which are in no other figure.
        duration: seconds in which the endpoint was loaded.
        ttft: seconds to the first token.
        itl: seconds between the pieces of the answers.
        tpot: seconds per output token after the first.
        e2e: seconds to the last token.
        requests_per_second: completed ones.
        output_tokens_per_second: of completed requests.
        total_tokens_per_second: prompts' and answers'.
        goodput: completed requests a second within all limits; ``None`` without limits.
        prompt_tokens: of completed requests.
        output_tokens: of completed requests.
        cached_tokens: of the prompts; ``None`` where the endpoint does not say.
        remote_bytes: read from the store, where the run could see it.
        lag: seconds by which requests were sent later than they were due.
    """

    requests: int
    errors: int
    duration: float
    ttft: Distribution
    itl: Distribution
    tpot: Distribution
    e2e: Distribution
    requests_per_second: float | None
    output_tokens_per_second: float | None
    total_tokens_per_second: float | None
    goodput: float | None
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None
    remote_bytes: int | None
    lag: Distribution

    @property
    def hit_ratio(self) -> float | None:
        """Cached ÷ all prompt tokens."""
        if self.cached_tokens is None or not self.prompt_tokens:
            return None
        return self.cached_tokens / self.prompt_tokens


def distribution(values: Iterable[float | None]) -> Distribution:
    """Of those values that there are."""
    known = [value for value in values if value is not None]
    if not known:
        return Distribution(0)
    quantiles = numpy.quantile(known, list(QUANTILES.values()))
    named: dict[str, Any] = dict(zip(QUANTILES, (float(each) for each in quantiles), strict=True))
    return Distribution(len(known), float(numpy.mean(known)), **named)


def grouped(records: Iterable[Record]) -> dict[Group, list[Record]]:
    """In the order in which the groups first appear in a run, shorter prompts first."""
    found: dict[Group, list[Record]] = {}
    for record in records:
        length = record.length if record.kind else None
        group = Group(record.endpoint, record.workload, record.phase, record.kind, length)
        found.setdefault(group, []).append(record)
    order = {name: number for number, name in enumerate(dict.fromkeys(_place(g) for g in found))}
    return dict(
        sorted(found.items(), key=lambda each: (order[_place(each[0])], each[0].length or 0))
    )


def _place(group: Group) -> tuple[str, str]:
    return group.workload, group.phase


def summarize(records: Sequence[Record], limits: Mapping[str, float] | None = None) -> Summary:
    """The figures of a group's requests.

    Args:
        records: of one endpoint.
        limits: of goodput, in seconds, by the names in :data:`LIMITED`.
    """
    done = [record for record in records if record.error is None]
    duration = loaded_seconds(records)
    prompt = sum(record.prompt_tokens or record.length for record in done)
    output = sum(record.output_tokens or 0 for record in done)
    cached = [record.cached_tokens for record in done if record.cached_tokens is not None]
    remote = [record.remote_bytes for record in done if record.remote_bytes is not None]
    good = sum(within(record, limits) for record in done) if limits else None
    return Summary(
        requests=len(records),
        errors=len(records) - len(done),
        duration=duration,
        ttft=distribution(record.ttft for record in done),
        itl=distribution(gap for record in done for gap in record.gaps),
        tpot=distribution(record.tpot for record in done),
        e2e=distribution(record.e2e for record in done),
        requests_per_second=len(done) / duration if duration else None,
        output_tokens_per_second=output / duration if duration else None,
        total_tokens_per_second=(prompt + output) / duration if duration else None,
        goodput=good / duration if good is not None and duration else None,
        prompt_tokens=prompt,
        output_tokens=output,
        cached_tokens=sum(cached) if cached else None,
        remote_bytes=sum(remote) if remote else None,
        lag=distribution(
            max(record.started - record.due, 0.0) for record in done if record.due is not None
        ),
    )


def within(record: Record, limits: Mapping[str, float]) -> bool:
    """Whether a completed request keeps all limits (a figure that it lacks keeps its limit)."""
    values = ((LIMITED[name](record), limit) for name, limit in limits.items())
    return all(value is None or value <= limit for value, limit in values)


def loaded_seconds(records: Iterable[Record]) -> float:
    """From the first request to the end of the last one, in each slice, added up.

    A run that compares endpoints loads them in turns: the time of the others does not count.
    """
    spans: dict[int, tuple[float, float]] = {}
    for record in records:
        first, last = spans.get(record.slice, (record.started, record.ended))
        spans[record.slice] = min(first, record.started), max(last, record.ended)
    return sum(last - first for first, last in spans.values())
