"""The findings as a table for people, as JSON for programs, and as lines for a log."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace

from kserve_lmcache.doctor.check import Finding, Status, one_line

# Words, not symbols: a log may be read without colour and in any encoding. The numbers are those of
# the colours in ANSI escape codes.
_MARKS = {
    Status.OK: ("ok", 32),
    Status.WARNING: ("warn", 33),
    Status.FAILURE: ("FAIL", 31),
    Status.SKIPPED: ("skip", 90),
}
_MARK_WIDTH = 4
# Longer evidence moves its own duration to the right, not that of other lines.
_MAX_EVIDENCE_WIDTH = 80


def table(findings: Sequence[Finding], colour: bool) -> str:
    """Returns a line for each finding: mark, name, evidence, duration. A fix has its own line."""
    findings = [replace(each, evidence=one_line(each.evidence)) for each in findings]
    names = max((len(finding.name) for finding in findings), default=0)
    evidence = max((len(finding.evidence) for finding in findings), default=0)
    evidence = min(evidence, _MAX_EVIDENCE_WIDTH)
    lines = []
    for finding in findings:
        word, number = _MARKS[finding.status]
        mark = f"{word:<{_MARK_WIDTH}}"
        if colour:
            mark = f"\x1b[{number}m{mark}\x1b[0m"
        columns = f"{finding.name:<{names}}  {finding.evidence:<{evidence}}"
        lines.append(f"{mark}  {columns}  {finding.seconds:6.3f} s")
        if finding.fix:
            lines.append(" " * (_MARK_WIDTH + names + 4) + one_line(finding.fix))
    return "\n".join(lines)


def as_json(findings: Sequence[Finding]) -> str:
    """Returns ``exit_code`` and ``findings``, a list of the fields of :class:`Finding`."""
    listed = [
        {"name": each.name, **asdict(each), "seconds": round(each.seconds, 6)} for each in findings
    ]
    return json.dumps({"exit_code": exit_code(findings), "findings": listed}, indent=2)


def log_line(finding: Finding) -> str:
    """Returns a finding on one line."""
    fix = f". {finding.fix}" if finding.fix else ""
    return one_line(f"{finding.name}: {finding.status.value}, {finding.evidence}{fix}")


def failures(findings: Sequence[Finding]) -> str:
    """Returns a line for each failure, with its fix; empty when nothing failed."""
    lines = [
        one_line(f"{each.name}: {each.evidence}. {each.fix}")
        for each in findings
        if each.status is Status.FAILURE
    ]
    return "\n".join(lines)


def exit_code(findings: Sequence[Finding]) -> int:
    """Returns 1 when a check failed, else 0. A server with warnings works."""
    return int(any(finding.status is Status.FAILURE for finding in findings))
