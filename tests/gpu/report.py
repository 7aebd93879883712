"""The report: JSON for programs and Markdown for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.gpu.runner import FAILED, Result


def report(run: Mapping[str, Any], results: Sequence[Result]) -> dict[str, Any]:
    """All that is known of a run, in types that JSON has.

    Args:
        run: of the whole: the device, the commit, times.
        results: of all steps, those that were left out too.
    """
    return {
        "run": dict(run),
        "failed": [each.step.name for each in results if each.status == FAILED],
        "steps": [
            {
                "name": each.step.name,
                "what": each.step.what,
                "status": each.status,
                "seconds": round(each.seconds, 1),
                "reason": each.reason,
                **each.found,
            }
            for each in results
        ],
    }


def markdown(found: Mapping[str, Any]) -> str:
    """The report as a page."""
    facts = dict(found["run"])
    for step in found["steps"]:
        facts |= step.get("facts", {}) if step["name"] == "machine" else {}
    steps = [
        {
            "step": step["name"],
            "result": step["status"],
            "seconds": step["seconds"],
            "what": step["what"],
            "reason": _line(step["reason"]),
        }
        for step in found["steps"]
    ]
    parts = ["# Run of `make test-gpu`", _facts(facts)]
    parts += ["## Steps", _table(steps)]
    for step in found["steps"]:
        is_shown = step["name"] != "machine" and step.get("facts")
        own = [_facts(step["facts"])] if is_shown else []
        for title, rows in step.get("tables", {}).items():
            own += [f"### {title}", _table(rows)] if rows else []
        if step["status"] == FAILED:
            own.append(f"```text\n{step['reason'].strip()}\n```")
        parts += [f"## {step['name']}", *own] if own else []
    return "\n\n".join(parts) + "\n"


def write(found: Mapping[str, Any], output: Path) -> None:
    """Write ``report.json`` and ``report.md`` into a directory."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "report.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    (output / "report.md").write_text(markdown(found))


def _facts(facts: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {_cell(value)} |" for name, value in facts.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(_cell(row.get(key)) for key in columns)} |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "" if value is None else _line(str(value)).replace("|", "\\|")


def _line(text: str) -> str:
    """The last line of a text, which of a traceback is the error."""
    return (text.strip().splitlines() or [""])[-1]
