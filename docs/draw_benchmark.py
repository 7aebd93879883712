"""Draws ``docs/assets/benchmark.png`` from the first table of ``docs/benchmarks.md``.

The picture holds a digest of the table, by which a test finds a stale picture.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

DOCS = Path(__file__).parent
PICTURE = DOCS / "assets" / "benchmark.png"
# A column of the table, its words in the picture, and its colour.
_CURVES = (
    ("`off`, computed", "computed", "#953800"),
    ("`ours`, from the other replica", "from the other replica, by Redis", "#0969da"),
    ("`ours`, cached", "from the same replica", "#1a7f37"),
)


def table() -> list[list[str]]:
    """The header and the rows of the first table."""
    lines = (DOCS / "benchmarks.md").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| Prompt"))
    rows = []
    for line in (lines[start], *lines[start + 2 :]):
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def digest() -> str:
    """What the picture says of the table that it was drawn from."""
    return hashlib.sha256(repr(table()).encode()).hexdigest()


def main() -> None:
    """Draw the picture."""
    header, *rows = table()
    tokens = [int(row[0].replace(",", "")) for row in rows]
    mpl.rcParams["font.size"] = 10
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    for column, words, colour in _CURVES:
        index = header.index(column)
        seconds = [int(row[index].replace(",", "")) / 1000 for row in rows]
        axes.plot(tokens, seconds, color=colour, marker="o", label=words)
    axes.set(
        xscale="log",
        yscale="log",
        xticks=tokens,
        xlabel="tokens of the prompt",
        ylabel="seconds to the first token",
        title="Time to first token; lower is better",
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(visible=True, alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(PICTURE, dpi=110, metadata={"Description": digest(), "Software": None})


if __name__ == "__main__":
    main()
