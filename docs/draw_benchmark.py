"""Draws ``docs/assets/benchmark.png`` from the first table of ``docs/benchmarks.md`` with prompts.

The picture holds a digest of the drawn numbers. A test finds a stale picture by the digest.
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


def curves() -> dict[str, list[int]]:
    """The drawn columns of the first table, and its prompt lengths in tokens."""
    header, *rows = _table()
    names = [header[0], *(column for column, _, _ in _CURVES)]
    return {name: [int(row[header.index(name)].replace(",", "")) for row in rows] for name in names}


def _table() -> list[list[str]]:
    """The header and the rows."""
    lines = (DOCS / "benchmarks.md").read_text().splitlines()
    start = next(
        number for number, line in enumerate(lines) if line.startswith("| Prompt, tokens |")
    )
    rows = []
    for line in (lines[start], *lines[start + 2 :]):
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def digest() -> str:
    """The digest of the drawn numbers, which the picture holds."""
    return hashlib.sha256(repr(curves()).encode()).hexdigest()


def main() -> None:
    """Draw the picture."""
    tokens, *drawn = curves().values()
    mpl.rcParams["font.size"] = 10
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    for (_, words, colour), milliseconds in zip(_CURVES, drawn, strict=True):
        seconds = [each / 1000 for each in milliseconds]
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
