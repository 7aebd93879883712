"""The figures of a log as a table for people, and as JSON and CSV for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from kserve_lmcache.bench import tiers
from kserve_lmcache.bench.compare import Ratio, ratios
from kserve_lmcache.bench.floor import BreakEven, Floor, break_evens, floors
from kserve_lmcache.bench.records import Log
from kserve_lmcache.bench.statistics import Distribution, Group, Summary, grouped, summarize

_FIGURES = {"ttft": "TTFT", "itl": "ITL", "tpot": "TPOT", "e2e": "E2E"}


@dataclass(frozen=True)
class Report:
    """Everything that is said of a log.

    Attributes:
        log: of which it is said.
        rows: the figures of each group.
        sources: by endpoint and phase, the shares of prompt tokens by where they came from.
        moved: by endpoint and phase, bytes by counter.
        ratios: of each endpoint to the first.
        floors: of loads from the store.
        break_evens: from which length on loading wins.
        limits: of goodput, in seconds.
    """

    log: Log
    rows: Sequence[tuple[Group, Summary]]
    sources: Mapping[tuple[str, str], Mapping[str, float]]
    moved: Mapping[tuple[str, str], Mapping[str, float]]
    ratios: Sequence[Ratio]
    floors: Sequence[Floor]
    break_evens: Sequence[BreakEven]
    limits: Mapping[str, float] = field(default_factory=dict)


def report(log: Log, limits: Mapping[str, float] | None = None) -> Report:
    """All figures of a log."""
    groups = grouped(log.requests)
    places = dict.fromkeys((group.endpoint, group.phase) for group in groups)
    sources = {each: tiers.shares(log.scrapes, log.requests, *each) for each in places}
    moved = {
        each: {
            name.removeprefix("bytes "): value
            for name, value in tiers.growth(log.scrapes, *each).items()
            if name.startswith("bytes ") and value
        }
        for each in places
    }
    return Report(
        log=log,
        rows=[(group, summarize(records, limits)) for group, records in groups.items()],
        sources={each: found for each, found in sources.items() if found},
        moved={each: found for each, found in moved.items() if found},
        ratios=ratios(log.requests, log.endpoints()),
        floors=floors(log.requests),
        break_evens=break_evens(log.requests),
        limits=limits or {},
    )


def as_json(found: Report) -> str:
    """All of it; seconds, bytes, tokens."""
    return json.dumps(
        {
            "run": found.log.run,
            "interrupted": found.log.interrupted or not found.log.complete,
            "servers": found.log.servers,
            "goodput_limits": dict(found.limits),
            "results": [
                {**asdict(group), **asdict(summary), "hit_ratio": summary.hit_ratio}
                for group, summary in found.rows
            ],
            "prompt_tokens_by_source": [
                {"endpoint": endpoint, "phase": phase, "shares": dict(shares)}
                for (endpoint, phase), shares in found.sources.items()
            ],
            "bytes": [
                {"endpoint": endpoint, "phase": phase, "counters": dict(counters)}
                for (endpoint, phase), counters in found.moved.items()
            ],
            "ratios": [{**asdict(each), "verdict": each.verdict} for each in found.ratios],
            "floors": [asdict(each) for each in found.floors],
            "break_even": [{**asdict(each), "says": each.says} for each in found.break_evens],
        },
        indent=2,
    )


def as_csv(found: Report) -> str:
    """One line a group; the names of the columns say the figure, the statistic and the unit."""
    rows = []
    for group, summary in found.rows:
        row: dict[str, Any] = asdict(group)
        for name, value in asdict(summary).items():
            if isinstance(value, dict):
                row |= {f"{name}_{key}_s": each for key, each in value.items() if key != "count"}
            else:
                row["duration_s" if name == "duration" else name] = value
        rows.append({**row, "hit_ratio": summary.hit_ratio})
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


@dataclass(frozen=True)
class Table:
    """For people.

    Attributes:
        title: what it is about.
        header: of its columns.
        rows: of texts, each as long as the header.
        note: below it.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def tables(found: Report) -> list[Table]:
    """Those tables that have something in them."""
    made = [_latencies(found), _throughputs(found), _sources(found), _bytes(found)]
    made += [_ratios(found), _floors(found), _break_evens(found), _servers(found), _errors(found)]
    return [table for table in made if table.rows]


def as_text(found: Report) -> str:
    """The tables, in columns."""
    return "\n\n".join(_text(table) for table in tables(found)) or "No request ended."


def milliseconds(seconds: float | None) -> str:
    """Three digits or so; a dash for nothing."""
    if seconds is None:
        return "-"
    value = seconds * 1000
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _latencies(found: Report) -> Table:
    rows = []
    for group, summary in found.rows:
        for name, title in _FIGURES.items():
            values: Distribution = getattr(summary, name)
            # A sweep of lengths is about the first token; all of it is in the JSON.
            if values.count and (name == "ttft" or not group.kind):
                cells = (values.mean, values.p50, values.p90, values.p99)
                rows.append([group.endpoint, group.what, title, *map(milliseconds, cells)])
    header = ["endpoint", "requests", "ms", "mean", "p50", "p90", "p99"]
    return Table("Latency, in milliseconds", header, rows)


def _throughputs(found: Report) -> Table:
    rows = []
    for group, summary in found.rows:
        good = [] if not found.limits else [_number(summary.goodput)]
        rows.append(
            [
                group.endpoint,
                group.what,
                f"{summary.requests - summary.errors}",
                f"{summary.errors}",
                _number(summary.requests_per_second),
                *good,
                _number(summary.output_tokens_per_second),
                _number(summary.total_tokens_per_second),
                _percent(summary.hit_ratio),
                milliseconds(summary.lag.p99),
            ]
        )
    good = ["good/s"] if found.limits else []
    note = ""
    if found.limits:
        kept = ", ".join(f"{name} ≤ {limit * 1000:g} ms" for name, limit in found.limits.items())
        note = f"good/s: completed requests a second with {kept}."
    if not any(summary.lag.count for _, summary in found.rows):
        rows = [row[:-1] for row in rows]
        lag = []
    else:
        lag = ["sent late, p99 ms"]
    header = ["endpoint", "requests", "completed", "errors", "requests/s", *good]
    header += ["output tokens/s", "all tokens/s", "hit ratio", *lag]
    return Table("Throughput, and how much of the prompts came from a cache", header, rows, note)


def _sources(found: Report) -> Table:
    names = list(dict.fromkeys(name for shares in found.sources.values() for name in shares))
    rows = [
        [endpoint, phase, *(_percent(shares.get(name)) for name in names)]
        for (endpoint, phase), shares in found.sources.items()
    ]
    return Table("Prompt tokens by where they came from", ["endpoint", "load", *names], rows)


def _bytes(found: Report) -> Table:
    rows = [
        [endpoint, phase, name, size(value)]
        for (endpoint, phase), counters in found.moved.items()
        for name, value in counters.items()
    ]
    rows += [
        [group.endpoint, group.what, "sent by the store", size(summary.remote_bytes)]
        for group, summary in found.rows
        if summary.remote_bytes is not None
    ]
    return Table("Bytes", ["endpoint", "requests", "counter", "in all"], rows)


def _ratios(found: Report) -> Table:
    rows = [
        [
            each.what,
            f"{each.endpoint} ÷ {each.reference}",
            f"{each.figure} {each.quantile}".strip(),
            f"{each.ratio:.3f}",
            f"{each.low:.3f} to {each.high:.3f}",
            each.verdict,
            f"{each.pairs}",
        ]
        for each in found.ratios
    ]
    header = ["requests", "ratio of", "figure", "ratio", "95 % interval", "", "pairs"]
    note = (
        "Below 1 is sooner for a latency; above 1 is more for requests/s. While the interval holds "
        "1, nothing is shown to differ."
    )
    return Table("Side by side", header, rows, note)


def _floors(found: Report) -> Table:
    rows = [
        [
            each.endpoint,
            f"{each.length}",
            milliseconds(each.remote),
            milliseconds(each.floor),
            f"{each.remote / each.floor:.2f}",
            "-" if each.cold is None else f"{each.remote / each.cold:.3f}",
            size(each.bytes),
        ]
        for each in found.floors
    ]
    header = ["endpoint", "tokens", "warm remote, ms", "floor, ms", "÷ floor", "÷ cold", "bytes"]
    note = (
        "The floor: the same bytes out of the same store through a bare socket, in the same run, "
        "plus the TTFT of the same prompt on the replica that has it. Medians."
    )
    return Table("Loading from the store, beside the least that it can take", header, rows, note)


def _break_evens(found: Report) -> Table:
    rows = [[each.endpoint, each.says] for each in found.break_evens]
    return Table("Break-even: loading from the store or computing", ["endpoint", ""], rows)


def _servers(found: Report) -> Table:
    rows = [[each["name"], f"{each['seconds_to_ready']:.1f}"] for each in found.log.servers]
    return Table("Start", ["server", "seconds to ready"], rows)


def _errors(found: Report) -> Table:
    counts: dict[tuple[str, str], int] = {}
    for record in found.log.requests:
        if record.error is not None:
            key = record.endpoint, record.error
            counts[key] = counts.get(key, 0) + 1
    rows = [[endpoint, f"{count}", error] for (endpoint, error), count in counts.items()]
    return Table("Errors", ["endpoint", "requests", "error"], rows)


def size(value: float | None) -> str:
    """Bytes for people."""
    if value is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _text(table: Table) -> str:
    columns = list(zip(table.header, *table.rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    # Words to the left, numbers to the right.
    right = [all(_is_number(cell) for cell in column[1:]) for column in columns]
    lines = [table.title]
    for row in (table.header, *table.rows):
        cells = (
            f"{cell:>{width}}" if to_right else f"{cell:<{width}}"
            for cell, width, to_right in zip(row, widths, right, strict=True)
        )
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join([*lines, *([f"  {table.note}"] if table.note else [])])


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.rstrip("%").replace(",", "").replace(".", "").isdigit()
