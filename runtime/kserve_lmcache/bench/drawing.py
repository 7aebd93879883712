"""How every picture looks: colours for light and dark, axes with units, a caption below."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from kserve_lmcache.bench.picture import DARK, LIGHT

# Okabe and Ito's colours, told apart by colour-blind people, light enough for the dark as well.
COLOURS = {
    LIGHT: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56a0d3"],
    DARK: ["#56b4e9", "#ff9e57", "#3fc99f", "#e6a3c8", "#f0e442", "#9ad1f5"],
}
INK = {LIGHT: "#1b1f24", DARK: "#e6edf3"}
SOFT = {LIGHT: "#d1d9e0", DARK: "#3d444d"}
PAPER = {LIGHT: "#ffffff", DARK: "#151b23"}

_DOTS_PER_INCH = 144


def drawn(draw: Callable[[Axes, str], None], title: str, caption: str) -> Callable[[str], bytes]:
    """What makes a PNG of a theme: ``draw``'s curves under a title, a caption below them."""

    @functools.cache  # for the file and for the page
    def picture(theme: str) -> bytes:
        with rc_context(_style(theme)):
            figure = Figure(figsize=(8, 4.8), dpi=_DOTS_PER_INCH, layout="constrained")
            axes = figure.add_subplot()
            axes.set_title(title, loc="left", wrap=True)
            axes.spines[["top", "right"]].set_visible(False)
            draw(axes, theme)
            if caption:
                figure.supxlabel(_wrapped(caption), x=0.01, ha="left", size=8.5)
            image = io.BytesIO()
            # Without the date and the version: the same log gives the same bytes.
            figure.savefig(image, format="png", metadata={"Software": None})
        return image.getvalue()

    return picture


def _wrapped(text: str, width: int = 125) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def _style(theme: str) -> dict[str, Any]:
    ink, soft, paper = INK[theme], SOFT[theme], PAPER[theme]
    return {
        "figure.facecolor": paper,
        "savefig.facecolor": paper,
        "axes.facecolor": paper,
        "axes.edgecolor": soft,
        "axes.labelcolor": ink,
        "axes.titlecolor": ink,
        "axes.titlesize": 12,
        "axes.titleweight": "bold",
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": soft,
        "grid.linewidth": 0.6,
        "text.color": ink,
        "xtick.color": ink,
        "ytick.color": ink,
        "legend.frameon": False,
        "legend.labelcolor": ink,
        "lines.linewidth": 2,
        "lines.markersize": 5,
    }


def seconds(value: float) -> str:
    """Seconds or milliseconds, three digits."""
    if value >= 1:
        return f"{value:.3g} s"
    return f"{value * 1000:.3g} ms"


def seconds_axis(axes: Axes, which: str = "y") -> None:
    """Plain numbers with their unit, also between the powers of ten."""
    axis = axes.yaxis if which == "y" else axes.xaxis
    formatter = FuncFormatter(lambda value, _: seconds(value) if value > 0 else "0")
    axis.set_major_formatter(formatter)
    low, high = axis.get_view_interval()
    scale = axis.get_scale()
    if scale == "log":
        marks = [m * 10.0**power for power in range(-5, 5) for m in (1, 2, 5)]
        inside = [mark for mark in marks if low * 0.8 <= mark <= high * 1.25]
        if len(inside) > 8:
            inside = [mark for mark in inside if f"{mark:e}".startswith("1")]
        axis.set_ticks(inside)
        axis.set_major_formatter(formatter)
        axis.set_minor_locator(NullLocator())


def length_axis(axes: Axes, lengths: Sequence[int]) -> None:
    """Prompt lengths that were measured, and no others."""
    axes.set_xticks(list(lengths), [f"{length:,}" for length in lengths])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.12)
