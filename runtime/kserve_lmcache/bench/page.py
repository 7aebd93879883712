"""One HTML file with the pictures and the tables: no script, and nothing from the network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from typing import Any

from kserve_lmcache.bench.picture import DARK, LIGHT, Picture
from kserve_lmcache.bench.report import Report, Table, tables

_STYLE = """
:root { --ink: #1b1f24; --soft: #59636e; --line: #d1d9e0; --paper: #f6f8fa; --card: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; --paper: #0d1117; --card: #151b23; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 1rem; display: grid; gap: 1rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: 1rem; min-width: 0; }
h1 { font-size: 1.25rem; margin: 0; } h2 { font-size: 1rem; margin: 0 0 .75rem; }
p { margin: .5rem 0 0; color: var(--soft); }
.warn { color: var(--ink); font-weight: 700; }
/* On a phone they are scrolled, since their words would be too small. */
img { width: 100%; min-width: 36rem; height: auto; display: block; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .75rem .3rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th, td { white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
:focus-visible { outline: 3px solid #0969da; outline-offset: 2px; }
"""

_WORDS = {
    "TTFT": "time to first token: from sending a request to the first piece of its answer",
    "ITL": "inter-token latency: between one piece of an answer and the next",
    "TPOT": "time per output token: (E2E - TTFT) ÷ (output tokens - 1)",
    "E2E": "from sending a request to the last piece of its answer",
    "p50, p90, p99": "half, 90 % and 99 % of the requests were at or below this",
    "hit ratio": "prompt tokens that came from a cache ÷ all prompt tokens",
    "95 % interval": "95 of 100 intervals made like this one hold the true ratio (bootstrap)",
}


def page(found: Report, pictures: Sequence[Picture]) -> str:
    """The file's text."""
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; "
    policy += "form-action 'none'"
    sections = [_head(found.log.run, found.log.interrupted or not found.log.complete)]
    sections += [_picture(each) for each in pictures]
    sections += [_table(each) for each in tables(found)]
    sections.append(_list("What the words mean", _WORDS))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>Benchmark</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def _head(run: dict[str, Any], interrupted: bool) -> str:
    facts = {
        "started": run.get("started"),
        "command": run.get("command"),
        "model": run.get("model"),
        "machine": run.get("machine"),
        "kserve-lmcache": run.get("version"),
        "seed": run.get("seed"),
    }
    known = {name: str(value) for name, value in facts.items() if value is not None}
    warning = (
        '<p class="warn">The run was ended before its time: this is what it had measured.</p>'
        if interrupted
        else ""
    )
    return f"<section>\n<h1>Benchmark</h1>\n{warning}\n{_pairs(known)}\n</section>"


def _picture(picture: Picture) -> str:
    light, dark = (
        f"data:image/png;base64,{base64.b64encode(picture.draw(theme)).decode()}"
        for theme in (LIGHT, DARK)
    )
    return (
        # To be scrolled by the keyboard as well.
        f'<section>\n<div class="wide" tabindex="0" role="region" '
        f'aria-label="{escape(picture.title)}"><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(picture.title)} {escape(picture.alt)}"></picture></div>\n'
        "</section>"
    )


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    return (
        f"<section>\n<h2>{escape(table.title)}</h2>\n"
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(table.title)}"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>\n{note}\n</section>"
    )


def _list(title: str, words: dict[str, str]) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{_pairs(words)}\n</section>"


def _pairs(words: dict[str, str]) -> str:
    inner = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in words.items()
    )
    return f"<dl>{inner}</dl>"
