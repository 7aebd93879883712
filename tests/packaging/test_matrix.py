"""The driver of ``make test-matrix`` tells a failure, and writes its table into the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.matrix import __main__ as matrix
from tests.matrix.__main__ import BEGIN, END, Outcome, Row
from tests.packaging.manifests import ROOT

REPORT = """<testsuites><testsuite time="1.5">
<testcase classname="a" name="passes"/>
<testcase classname="a" name="fails"><failure/></testcase>
<testcase classname="a" name="has no fixture"><error/></testcase>
<testcase classname="a" name="skips"><skipped/></testcase>
</testsuite></testsuites>"""


def test_every_test_of_the_list_exists() -> None:
    listed = [*(path for group in matrix.GROUPS.values() for path in group), matrix.BETWEEN]
    assert [path for path in listed if not (ROOT / path).exists()] == []


def test_a_test_that_skips_has_failed(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    outcome = matrix.read(report)
    assert outcome == Outcome(1, ("a::fails", "a::has no fixture", "a::skips"), 1.5)
    assert str(outcome) == "1 passed, 3 failed, 2 s"
    assert not Row("0.1", outcomes={"e2e": outcome}).is_good
    assert not Row("0.1", error="not installed").is_good


def test_the_table_replaces_the_former_one(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    row = Row("0.1", {"vLLM": "0.1.2"}, {"contract": Outcome(3, (), 4)})
    matrix.write(page, matrix.table([row], None))
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n| Tested set | vLLM |")
    assert "| 0.1 | 0.1.2 | ? | ? | ? | ? | 3 passed, 0 failed, 4 s | not run | not run |" in text
    assert "old" not in text
    assert text.endswith(f"{END}\nafter\n")


def test_a_page_without_a_place_is_an_error(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no place")
    with pytest.raises(ValueError, match="has no lines"):
        matrix.write(page, "table")


@pytest.mark.parametrize("arguments", [["--sets=0.1"], ["--groups=none"]])
def test_unknown_names_are_refused(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["matrix", *arguments])
    with pytest.raises(SystemExit):
        matrix.main()
    assert "not of" in capsys.readouterr().err
