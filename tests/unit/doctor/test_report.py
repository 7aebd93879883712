from __future__ import annotations

import json

from kserve_lmcache.doctor.check import Finding, Status, failure, ok, skipped, warning
from kserve_lmcache.doctor.report import as_json, exit_code, log_line, table

FINDINGS = [
    Finding(Status.OK, "cache is 10.0.0.1", name="name", seconds=0.0123),
    Finding(Status.WARNING, "no limit", "Set one.", "memory", 1.0),
    Finding(Status.FAILURE, "full", "Empty it.", "round trip", 12.5),
    Finding(Status.SKIPPED, "needs INFO", name="clock"),
]


def test_the_table_is_aligned_and_a_fix_has_its_own_line() -> None:
    assert table(FINDINGS, colour=False).splitlines() == [
        "ok    name        cache is 10.0.0.1   0.012 s",
        "warn  memory      no limit            1.000 s",
        "                  Set one.",
        "FAIL  round trip  full               12.500 s",
        "                  Empty it.",
        "skip  clock       needs INFO          0.000 s",
    ]


def test_colour_is_on_the_mark_alone() -> None:
    plain, coloured = table(FINDINGS, colour=False), table(FINDINGS, colour=True)
    assert "\x1b" not in plain
    assert coloured.splitlines()[3].startswith("\x1b[31mFAIL\x1b[0m  round trip")
    for code in ("[31m", "[32m", "[33m", "[90m", "[0m"):
        coloured = coloured.replace(f"\x1b{code}", "")
    assert coloured == plain


def test_long_evidence_does_not_widen_the_others() -> None:
    first, second = table(
        [Finding(Status.OK, "x" * 200, name="a"), Finding(Status.OK, "y", name="b")], colour=False
    ).splitlines()
    assert first.index("0.000 s") > 200
    assert second.index("0.000 s") == len("ok    b  ") + 80 + 3


def test_evidence_cannot_move_the_cursor() -> None:
    shown = table([failure("one\ntwo\x1b[2J", "three\rfour")], colour=False)
    assert "one two [2J" in shown
    assert shown.splitlines()[1].strip() == "three four"


def test_an_empty_table() -> None:
    assert table([], colour=False) == ""


def test_json_holds_everything() -> None:
    parsed = json.loads(as_json(FINDINGS))
    assert parsed["exit_code"] == 1
    assert parsed["findings"][1] == {
        "name": "memory",
        "status": "warning",
        "evidence": "no limit",
        "fix": "Set one.",
        "seconds": 1.0,
    }
    assert [finding["status"] for finding in parsed["findings"]] == [
        "ok",
        "warning",
        "failure",
        "skipped",
    ]


def test_only_a_failure_fails() -> None:
    assert exit_code([]) == 0
    assert exit_code([ok(""), warning("", ""), skipped("")]) == 0
    assert exit_code([ok(""), failure("", "")]) == 1


def test_a_line_of_a_log_has_the_fix_and_no_line_break() -> None:
    assert log_line(FINDINGS[0]) == "name: ok, cache is 10.0.0.1"
    broken = Finding(Status.FAILURE, "one\ntwo", "Empty it.", "disk")
    assert log_line(broken) == "disk: failure, one two. Empty it."
