"""The report of a log: tables for people, JSON for programs, and pictures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from kserve_lmcache.bench.figures import Row, by_length, place, ratios
from kserve_lmcache.bench.records import COLD, OTHER, SAME, Log

# Columns of the table, with Okabe and Ito's colours, which colour-blind people can tell apart.
_CURVES = {
    COLD: ("new prompt, computed", "#d55e00", "o-"),
    SAME: ("again, same replica", "#009e73", "o-"),
    OTHER: ("again, other replica (from the store)", "#0072b2", "o-"),
    "lower bound": ("lower bound of the other replica", "#56b4e9", ":"),
}


def report(log: Log) -> dict[str, Any]:
    """All figures of a log. Those of vLLM are the median of all turns."""
    turns: dict[tuple[str, str], list[Row]] = {}
    for row in log.figures:
        turns.setdefault(place(row), []).append(row)
    errors = Counter((each.endpoint, each.error) for each in log.requests if each.error)
    return {
        "run": log.run,
        "interrupted": not log.complete,
        "by_length": [row for each in log.labels for row in by_length(log, each)],
        "load": [
            {name: _middle([row[name] for row in rows]) for name in rows[0]}
            for _, rows in sorted(turns.items(), key=lambda each: log.labels.index(each[0][1]))
        ],
        "ratios": ratios(log),
        "errors": [{"endpoint": a, "error": b, "count": n} for (a, b), n in errors.items()],
    }


def _middle(values: list[Any]) -> Any:
    return median(values) if isinstance(values[0], int | float) else values[0]


def as_text(found: Mapping[str, Any]) -> str:
    """Tables for people."""
    tables = {"Median time to first token, ms": found["by_length"]}
    for phase in dict.fromkeys(row["phase"] for row in found["load"]):
        mine = [row for row in found["load"] if row["phase"] == phase]
        tables[f"{phase}: figures of vllm bench serve, medians of the turns"] = [
            {"figure": name, **{row["endpoint"]: row[name] for row in mine}}
            for name, value in mine[0].items()
            if isinstance(value, int | float)
        ]
    tables |= {"Ratios, with 95 % intervals": found["ratios"], "Errors": found["errors"]}
    texts = [f"{title}\n{_table(rows)}" for title, rows in tables.items() if rows]
    return "\n\n".join(texts) or "No request ended."


def _table(rows: Sequence[Row]) -> str:
    columns = [key for key in rows[0] if any(row[key] is not None for row in rows)]
    lines = [columns, *([_cell(row[key]) for key in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[f"{c:<{w}}" for c, w in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("  " + "  ".join(line).rstrip() for line in padded)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def write(found: Mapping[str, Any], directory: Path) -> str:
    """Write ``report.json`` and the pictures, and return a note. Replaces files of these names."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "report.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    try:
        for number, endpoint in enumerate(found["run"]["endpoints"], start=1):
            rows = [row for row in found["by_length"] if row["endpoint"] == endpoint["label"]]
            if len(rows) > 1:
                _draw(rows, directory / f"ttft_by_length_{number}.png")
    except ModuleNotFoundError:
        return f"The report is in {directory}. Pictures need pip install 'kserve-lmcache[bench]'"
    return f"The report is in {directory}"


def _draw(rows: Sequence[Row], path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullLocator

    figure = Figure(figsize=(8, 4.8), dpi=144, layout="constrained")
    axes = figure.add_subplot(xlabel="prompt length, tokens", ylabel="median time to first token")
    axes.set_title(f"{rows[0]['endpoint']}: lower is better", loc="left", weight="bold")
    axes.grid(color="#d1d9e0", linewidth=0.6)
    for column, (label, colour, style) in _CURVES.items():
        known = [(row["tokens"], row[column]) for row in rows if row[column] is not None]
        if known:
            axes.plot(*zip(*known, strict=True), style, color=colour, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([row["tokens"] for row in rows], [f"{row['tokens']:,}" for row in rows])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g} ms"))
    axes.legend(frameon=False)
    # Without the version of matplotlib: the same log gives the same bytes.
    figure.savefig(path, metadata={"Software": None})
