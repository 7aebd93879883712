"""The journal of what the disk's files stand for."""

from __future__ import annotations

from pathlib import Path

import pytest

from kserve_lmcache.tiers.disk.journal import Journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "chunks.sqlite"


def test_what_one_process_wrote_the_next_one_reads(path: Path) -> None:
    first = Journal(path)
    first.put([("a", "1", b"x"), ("a", "2", b"y"), ("b", "1", b"z")])
    first.delete(["b"])
    first.close()
    second = Journal(path)
    assert list(second.rows()) == [("a", b"x"), ("a", b"y")]
    assert second.names() == ["a"]
    second.keep(set())
    assert second.names() == []
    second.close()


def test_only_the_owner_may_read_it(path: Path) -> None:
    journal = Journal(path)
    journal.put([("a", "1", b"x")])
    journal.close()
    assert path.stat().st_mode & 0o77 == 0
    assert path.parent.stat().st_mode & 0o77 == 0


def test_a_damaged_journal_is_begun_anew(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database" * 100)
    journal = Journal(path)
    assert journal.names() == []
    assert f"The journal {path} fails" in caplog.text
    journal.put([("a", "1", b"x")])
    assert journal.names() == ["a"]
    journal.close()


def test_a_journal_that_cannot_be_written_is_none(path: Path) -> None:
    path.parent.write_text("no folder")
    journal = Journal(path)
    journal.put([("a", "1", b"x")])
    assert journal.names() == []
    assert list(journal.rows()) == []
