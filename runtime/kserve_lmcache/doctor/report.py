"""The findings as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from kserve_lmcache.doctor.check import Finding, Status

# Words, not symbols: a log may be read without colour and in any encoding.
_MARKS = {
    Status.OK: "ok",
    Status.WARNING: "warn",
    Status.FAILURE: "FAIL",
    Status.SKIPPED: "skip",
}
_COLOURS = {
    Status.OK: "\x1b[32m",
    Status.WARNING: "\x1b[33m",
    Status.FAILURE: "\x1b[31m",
    Status.SKIPPED: "\x1b[90m",
}
_PLAIN = "\x1b[0m"
_MARK_WIDTH = max(map(len, _MARKS.values()))
# Longer evidence pushes its own time aside, not that of all the others.
_WIDEST_EVIDENCE = 80


def table(findings: Sequence[Finding], colour: bool) -> str:
    """One line a finding (mark, name, evidence, time), and its fix on a line of its own."""
    findings = [replace(each, evidence=_line(each.evidence)) for each in findings]
    names = max((len(finding.name) for finding in findings), default=0)
    evidence = max((len(finding.evidence) for finding in findings), default=0)
    evidence = min(evidence, _WIDEST_EVIDENCE)
    lines = []
    for finding in findings:
        mark = _MARKS[finding.status].ljust(_MARK_WIDTH)
        if colour:
            mark = f"{_COLOURS[finding.status]}{mark}{_PLAIN}"
        columns = f"{finding.name:<{names}}  {finding.evidence:<{evidence}}"
        lines.append(f"{mark}  {columns}  {finding.seconds:6.3f} s")
        if finding.fix:
            lines.append(" " * (_MARK_WIDTH + names + 4) + _line(finding.fix))
    return "\n".join(lines)


def _line(text: str) -> str:
    """A text of a server may hold what would move a terminal's cursor."""
    return "".join(character if character.isprintable() else " " for character in text)


def as_json(findings: Sequence[Finding]) -> str:
    """``{"exit_code": …, "findings": [{"name", "status", "evidence", "fix", "seconds"}, …]}``."""
    listed = [
        {
            "name": finding.name,
            "status": finding.status.value,
            "evidence": finding.evidence,
            "fix": finding.fix,
            "seconds": round(finding.seconds, 6),
        }
        for finding in findings
    ]
    return json.dumps({"exit_code": exit_code(findings), "findings": listed}, indent=2)


def exit_code(findings: Sequence[Finding]) -> int:
    """1 when anything failed, else 0: a warning does not keep the server from working."""
    return int(any(finding.status is Status.FAILURE for finding in findings))
