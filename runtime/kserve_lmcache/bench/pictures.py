"""The figures of a log as pictures, in light and in dark.

Each picture says in its title what it shows and which way is better, and names its curves beside
them or in a legend with words, so that it can be read alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from kserve_lmcache.bench import floor
from kserve_lmcache.bench.drawing import (
    COLOURS,
    INK,
    PAPER,
    SOFT,
    drawn,
    length_axis,
    seconds,
    seconds_axis,
)
from kserve_lmcache.bench.picture import Picture
from kserve_lmcache.bench.records import Record
from kserve_lmcache.bench.report import Report
from kserve_lmcache.bench.workloads import COLD, KINDS, REMOTE, WARM

_KIND_COLOURS = {COLD: 1, WARM: 2, REMOTE: 0}
_KIND_WORDS = {
    COLD: "new prompt, computed",
    WARM: "again, same replica",
    REMOTE: "again, another replica (from the store)",
}
_BINS = 24


_SOURCE_WORDS = {
    "computed": "by the engine, now",
    "prefix cache": "still in the engine's own memory",
    "connector": "loaded from the offloaded cache (local memory or the store)",
    "local cpu": "loaded from the replica's own memory",
    "remote": "loaded from the store",
    "cache": "from any cache",
}


def pictures(found: Report) -> list[Picture]:
    """Those that the log has data for."""
    done = [record for record in found.log.requests if record.error is None]
    streamed = [record for record in done if record.ttft is not None]
    made: list[Picture | None] = []
    endpoints = found.log.endpoints()
    for number, endpoint in enumerate(endpoints):
        mine = [record for record in streamed if record.endpoint == endpoint]
        suffix = f"_{number + 1}" if len(endpoints) > 1 else ""
        made += [_by_length(mine, endpoint, suffix), _break_even(found, mine, endpoint, suffix)]
    made.append(_distribution(streamed, endpoints))
    # A sweep of lengths is made of cold and warm ones: their mixture says nothing.
    mixed = [record for record in done if not record.kind]
    made += [_over_time(mixed, endpoints), _sources(found) if mixed else None, _loads(found)]
    return [picture for picture in made if picture is not None]


def _by_length(records: Sequence[Record], endpoint: str, suffix: str) -> Picture | None:
    """TTFT cold, warm local and warm remote against prompt length."""
    curves = {kind: floor.medians(records, kind) for kind in KINDS}
    curves = {kind: curve for kind, curve in curves.items() if len(curve) > 1}
    if len(curves) < 2:
        return None

    def draw(axes: Axes, theme: str) -> None:
        for kind, curve in curves.items():
            colour = COLOURS[theme][_KIND_COLOURS[kind]]
            lengths = list(curve)
            spread = [_times(records, kind, length) for length in lengths]
            low, high = (
                [float(numpy.quantile(each, share)) for each in spread] for share in (0.1, 0.9)
            )
            axes.fill_between(lengths, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(
                lengths, list(curve.values()), color=colour, marker="o", label=_KIND_WORDS[kind]
            )
            axes.annotate(
                seconds(curve[lengths[-1]]),
                (lengths[-1], curve[lengths[-1]]),
                textcoords="offset points",
                xytext=(8, -4),
                color=colour,
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        length_axis(axes, sorted({length for curve in curves.values() for length in curve}))
        seconds_axis(axes)
        axes.set_xlabel("prompt length, tokens")
        axes.set_ylabel("time to first token")
        axes.legend(loc="upper left")

    longest = max(curves[COLD] if COLD in curves else curves[WARM])
    said = ", ".join(
        f"{_KIND_WORDS[kind]}: {seconds(curve[longest])}"
        for kind, curve in curves.items()
        if longest in curve
    )
    title = f"{endpoint}: how long until the first token? (lower is better)"
    alt = f"At {longest} tokens, {said}. Medians; the bands hold 80 % of the requests."
    return Picture(f"ttft_by_length{suffix}", title, alt, drawn(draw, title, alt))


def _break_even(
    found: Report, records: Sequence[Record], endpoint: str, suffix: str
) -> Picture | None:
    """Warm remote ÷ cold against prompt length, and where it crosses 1."""
    lines = [each for each in found.break_evens if each.endpoint == endpoint]
    cold, remote = floor.medians(records, COLD), floor.medians(records, REMOTE)
    lengths = [length for length in cold if length in remote]
    if not lines or len(lengths) < 2:
        return None
    ratios = [remote[length] / cold[length] for length in lengths]
    line = lines[0]

    def draw(axes: Axes, theme: str) -> None:
        top = max(1.25, *ratios) * 1.1
        green, orange = COLOURS[theme][2], COLOURS[theme][1]
        axes.axhspan(0, 1, color=green, alpha=0.10, linewidth=0)
        axes.axhspan(1, top, color=orange, alpha=0.10, linewidth=0)
        axes.axhline(1, color=INK[theme], linewidth=1, linestyle="--")
        axes.plot(lengths, ratios, color=COLOURS[theme][0], marker="o")
        for length, ratio in zip(lengths, ratios, strict=True):
            axes.annotate(
                f"{ratio:.2f}",
                (length, ratio),
                textcoords="offset points",
                xytext=(5, 6),
            )
        if line.tokens is not None and line.crossed:
            axes.axvline(line.tokens, color=INK[theme], linewidth=1, linestyle=":")
        for height, words, at, colour in (
            (0.98, "loading is sooner", "top", green),
            (1.02, "computing is sooner", "bottom", orange),
        ):
            place = axes.get_yaxis_transform()
            axes.text(0.99, height, words, transform=place, ha="right", va=at, color=colour)
        axes.set_xscale("log", base=2)
        length_axis(axes, lengths)
        axes.set_ylim(0, top)
        axes.set_xlabel("prompt length, tokens")
        axes.set_ylabel("from the store ÷ computed")

    title = f"{endpoint}: is loading from the store worth it?"
    alt = f"{line.says[0].upper()}{line.says[1:]}. Median times to first token, one by the other."
    return Picture(f"break_even{suffix}", title, alt, drawn(draw, title, alt))


def _distribution(records: Sequence[Record], endpoints: Sequence[str]) -> Picture | None:
    """Which share of the requests had their first token by which time; of a sweep, the longest."""
    longest = max((record.length for record in records if record.kind), default=0)
    curves: dict[tuple[str, str], list[float]] = {}
    for record in records:
        if record.ttft is not None and not (record.kind and record.length != longest):
            what = _KIND_WORDS[record.kind] if record.kind else record.phase
            curves.setdefault((record.endpoint, what), []).append(record.ttft)
    if not any(len(times) > 2 for times in curves.values()):
        return None
    kinds = list(dict.fromkeys(what for _, what in curves))
    columns = 1 if longest else 2  # what a kind is takes more words than a load

    def draw(axes: Axes, theme: str) -> None:
        colours, styles = COLOURS[theme], ("-", "--", ":", "-.")
        for (endpoint, what), times in curves.items():
            name = f"{endpoint}, {what}" if len(kinds) > 1 else endpoint
            axes.step(
                sorted(times),
                numpy.arange(1, len(times) + 1) / len(times),
                where="post",
                # An endpoint's colour is the same in all pictures that compare endpoints.
                color=colours[endpoints.index(endpoint) % len(colours)],
                linestyle=styles[kinds.index(what) % len(styles)],
                label=f"{name}: half within {seconds(float(numpy.median(times)))}",
            )
        axes.set_xscale("log")
        seconds_axis(axes, which="x")
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_xlabel("time to first token")
        axes.set_ylabel("requests answered by then")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=8.5, ncols=columns)

    title = "How many requests had their first token by when? (further left is better)"
    alt = "; ".join(
        f"{endpoint}, {what}: half within {seconds(float(numpy.median(times)))}, 99 % within "
        f"{seconds(float(numpy.quantile(times, 0.99)))}"
        for (endpoint, what), times in curves.items()
    )
    caption = f"Prompts of {longest:,} tokens, the longest that were asked." if longest else ""
    return Picture("ttft_distribution", title, alt, drawn(draw, title, caption))


def _over_time(records: Sequence[Record], endpoints: Sequence[str]) -> Picture | None:
    """Cached ÷ all prompt tokens of the requests that were sent in each stretch of time."""
    told = [record for record in records if record.cached_tokens is not None]
    if len(told) < 4:
        return None
    end = max(record.started for record in told)
    begin = min(record.started for record in told)
    edges = numpy.linspace(begin, max(end, begin + 1e-3), min(_BINS, max(len(told) // 4, 2)) + 1)
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for endpoint in endpoints:
        mine = [record for record in told if record.endpoint == endpoint]
        if not mine:
            continue
        started = [record.started for record in mine]
        places = numpy.clip(numpy.digitize(started, edges) - 1, 0, len(edges) - 2)
        cached, whole = (
            numpy.bincount(places, weights=weights, minlength=len(edges) - 1)
            for weights in (
                [float(record.cached_tokens or 0) for record in mine],
                [float(record.prompt_tokens or record.length) for record in mine],
            )
        )
        known = whole > 0
        middle = ((edges[:-1] + edges[1:]) / 2 - begin)[known]
        curves[endpoint] = (middle.tolist(), (cached[known] / whole[known]).tolist())
    totals = {
        endpoint: sum(r.cached_tokens or 0 for r in told if r.endpoint == endpoint)
        / sum(r.prompt_tokens or r.length for r in told if r.endpoint == endpoint)
        for endpoint in curves
    }

    def draw(axes: Axes, theme: str) -> None:
        for number, (endpoint, (times, shares)) in enumerate(curves.items()):
            axes.plot(
                times,
                shares,
                color=COLOURS[theme][number % len(COLOURS[theme])],
                marker="o",
                label=f"{endpoint} ({totals[endpoint]:.0%} in all)",
            )
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_xlabel("seconds after the first request")
        axes.set_ylabel("prompt tokens from a cache")
        axes.legend(loc="best")

    title = "How much of the prompts came from a cache, over time? (higher is better)"
    alt = ", ".join(f"{endpoint}: {share:.0%} in all" for endpoint, share in totals.items())
    caption = "Each point is the requests that were sent in one stretch of time."
    return Picture("hit_ratio_over_time", title, alt, drawn(draw, title, caption))


def _sources(found: Report) -> Picture | None:
    """Where the prompt tokens came from, one bar an endpoint and load."""
    if not found.sources:
        return None
    names = list(dict.fromkeys(name for shares in found.sources.values() for name in shares))
    bars = {f"{endpoint}\n{phase}": shares for (endpoint, phase), shares in found.sources.items()}

    def draw(axes: Axes, theme: str) -> None:
        left = numpy.zeros(len(bars))
        for number, name in enumerate(names):
            widths = numpy.array([shares.get(name, 0.0) for shares in bars.values()])
            colour = (
                SOFT[theme]
                if name == "computed"
                else COLOURS[theme][(number + 2) % len(COLOURS[theme])]
            )
            axes.barh(list(bars), widths, left=left, color=colour, label=name, height=0.6)
            for row, width in enumerate(widths):
                if width > 0.05:
                    x = float(left[row] + width / 2)
                    ink = INK[theme] if name == "computed" else PAPER[theme]
                    axes.text(x, row, f"{width:.0%}", ha="center", va="center", color=ink)
            left += widths
        axes.set_xlim(0, 1)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.set_xlabel("share of the prompt tokens")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=len(names))

    title = "Where did the prompts' tokens come from?"
    alt = "; ".join(
        f"{endpoint}, {phase}: "
        + ", ".join(f"{share:.0%} {name}" for name, share in shares.items() if share)
        for (endpoint, phase), shares in found.sources.items()
    )
    said = [f"{name}: {_SOURCE_WORDS[name]}" for name in names if name in _SOURCE_WORDS]
    return Picture("prompt_tokens_by_source", title, alt, drawn(draw, title, "; ".join(said)))


def _loads(found: Report) -> Picture | None:
    """TTFT and throughput against the load, where there is more than one."""
    phases = list(dict.fromkeys(group.phase for group, _ in found.rows))
    rows = [(group, summary) for group, summary in found.rows if not group.kind]
    if len(phases) < 2 or not rows:
        return None
    endpoints = list(dict.fromkeys(group.endpoint for group, _ in rows))

    def draw(axes: Axes, theme: str) -> None:
        for number, endpoint in enumerate(endpoints):
            mine = {g.phase: summary for g, summary in rows if g.endpoint == endpoint}
            colour = COLOURS[theme][number % len(COLOURS[theme])]
            points = [
                (mine[phase].output_tokens_per_second, mine[phase].e2e.p50, phase)
                for phase in phases
                if phase in mine
            ]
            known = [(x, y, phase) for x, y, phase in points if x is not None and y is not None]
            if not known:
                continue
            axes.plot(
                [x for x, _, _ in known],
                [y for _, y, _ in known],
                marker="o",
                color=colour,
                label=endpoint,
            )
            above = 6 if number % 2 else -12
            for x, y, phase in known:
                axes.annotate(
                    phase,
                    (x, y),
                    textcoords="offset points",
                    xytext=(6, above),
                    color=colour,
                    size=8,
                )
        axes.set_xlim(left=0)
        axes.margins(x=0.2, y=0.2)
        axes.set_ylim(bottom=0)
        seconds_axis(axes)
        axes.set_xlabel("output tokens a second")
        axes.set_ylabel("whole answer, median")
        axes.legend(loc="best")

    title = "Speed under load (lower and further right is better)"
    alt = "One point for each load: " + ", ".join(phases)
    return Picture("load", title, alt, drawn(draw, title, f"{alt}."))


def _times(records: Sequence[Record], kind: str, length: int) -> list[float]:
    return [r.ttft for r in records if (r.kind, r.length) == (kind, length) and r.ttft is not None]
