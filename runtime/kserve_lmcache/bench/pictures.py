"""The pictures of a report, as PNG files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from kserve_lmcache.bench.figures import Row
from kserve_lmcache.bench.records import COLD, OTHER, SAME

# Columns of the table, with Okabe and Ito's colours, which colour-blind people can tell apart.
_CURVES = {
    COLD: ("new prompt, computed", "#d55e00", "o-"),
    SAME: ("again, same replica", "#009e73", "o-"),
    OTHER: ("again, other replica (from the store)", "#0072b2", "o-"),
    "lower bound": ("lower bound of the other replica", "#56b4e9", ":"),
}


def draw(found: Mapping[str, Any], directory: Path) -> None:
    """Draw TTFT by length of each endpoint, and the ratios, if the report has them."""
    for number, endpoint in enumerate(found["run"]["endpoints"], start=1):
        rows = [row for row in found["by_length"] if row["endpoint"] == endpoint["label"]]
        if len(rows) > 1:
            title = f"{endpoint['label']}: median time to first token (lower is better)"
            _picture(directory / f"ttft_by_length_{number}.png", title, _by_length, rows)
    shown = [row for row in found["ratios"] if not row["figure"].endswith(("p90", "p99"))]
    if shown:
        title = f"÷ {shown[0]['reference']}, with 95 % intervals (1: no difference)"
        _picture(directory / "ratios.png", title, _ratios, shown)


def _picture(
    path: Path, title: str, draw: Callable[[Axes, list[Row]], None], rows: list[Row]
) -> None:
    figure = Figure(figsize=(8, 4.8), dpi=144, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", weight="bold")
    axes.grid(color="#d1d9e0", linewidth=0.6)
    draw(axes, rows)
    # Without the version of matplotlib: the same log gives the same bytes.
    figure.savefig(path, metadata={"Software": None})


def _by_length(axes: Axes, rows: list[Row]) -> None:
    for column, (label, colour, style) in _CURVES.items():
        known = [(row["tokens"], row[column]) for row in rows if row[column] is not None]
        if known:
            axes.plot(*zip(*known, strict=True), style, color=colour, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([row["tokens"] for row in rows], [f"{row['tokens']:,}" for row in rows])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g} ms"))
    axes.set_xlabel("prompt length, tokens")
    axes.legend(frameon=False)


def _ratios(axes: Axes, rows: list[Row]) -> None:
    middle = numpy.array([row["ratio"] for row in rows])
    ends = numpy.abs(numpy.array([(row["low"], row["high"]) for row in rows]).T - middle)
    axes.errorbar(middle, range(len(rows)), xerr=ends, fmt="o", color="#0072b2", capsize=3)
    names = [f"{row['endpoint']}, {row['phase']}: {row['figure']}" for row in rows]
    axes.set_yticks(range(len(rows)), names, size=8)
    axes.axvline(1, color="black", linestyle="--", linewidth=1)
    axes.invert_yaxis()
