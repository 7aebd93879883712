"""The journal of what the disk's files stand for."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from kserve_lmcache.tiers.disk import journal as module
from kserve_lmcache.tiers.disk.journal import Journal, forget, journal_path, remove_abandoned


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


def fill(path: Path, count: int = 300) -> dict[str, bytes]:
    """Write a journal, some rows at a time, and return its contents by name."""
    made = random.Random(path.name)
    rows = {
        f"{made.getrandbits(64):x}@kserve%{number % 2}": made.randbytes(made.randrange(50, 3000))
        for number in range(count)
    }
    journal, names = Journal(path), list(rows)
    for begin in range(0, count, 20):
        journal.put([(name, "1", rows[name]) for name in names[begin : begin + 20]])
    journal.close()
    return rows


def is_of_one(name: str) -> bool:
    return name.endswith("%1")


def test_what_is_forgotten_is_in_no_journal_of_the_directory(tmp_path: Path) -> None:
    paths = [journal_path(tmp_path, digest) for digest in ("aa", "bb")]
    rows = [fill(path) for path in paths]
    forget(tmp_path, is_of_one)
    for path, written in zip(paths, rows, strict=True):
        left = {name: content for name, content in written.items() if not is_of_one(name)}
        journal = Journal(path)
        assert dict(journal.rows()) == left
        journal.close()
        data = path.read_bytes()
        gone = [content for name, content in written.items() if name not in left]
        assert not any(content[:16] in data or content[-16:] in data for content in gone)
        assert not any(name.encode() in data for name in written if name not in left)
    assert {each.name for each in tmp_path.iterdir()} == {path.name for path in paths}


def test_what_was_deleted_earlier_is_overwritten_too(tmp_path: Path) -> None:
    """Copies of rows are left on pages where they were once."""
    path = journal_path(tmp_path, "aa")
    written = fill(path)
    journal = Journal(path)
    journal.keep({name for name in written if not is_of_one(name)})
    journal.close()
    forget(tmp_path, lambda name: False)
    data = path.read_bytes()
    gone = [content for name, content in written.items() if is_of_one(name)]
    assert not any(content[:16] in data or content[-16:] in data for content in gone)


def test_a_journal_that_is_written_meanwhile_is_waited_for(tmp_path: Path) -> None:
    """And what others write stays."""
    path, ended = journal_path(tmp_path, "aa"), threading.Event()
    fill(path)
    failed: list[bool] = []

    def write() -> None:
        journal, number = Journal(path), 0
        while not ended.is_set():
            number += 1
            journal.put([(f"{number}@kserve%0", "1", b"x" * 500)])
            time.sleep(0.005)  # SQLite is not fair to who waits
        failed.append(journal._failed)
        assert len(journal.names()) == number + 150
        journal.close()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(20):
            forget(tmp_path, is_of_one)
    finally:
        ended.set()
        thread.join()
    assert failed == [False]


def test_a_journal_that_is_locked_for_long_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WAIT_SECONDS", 0.05)
    path = journal_path(tmp_path, "aa")
    fill(path)
    other = sqlite3.connect(path)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(OSError, match=r"chunks-aa\.sqlite fails: database is locked"):
        forget(tmp_path, is_of_one)
    other.close()
    forget(tmp_path, is_of_one)


def test_a_damaged_journal_is_removed_with_what_it_has(tmp_path: Path) -> None:
    path = journal_path(tmp_path, "aa")
    path.write_bytes(b"a prompt" * 1000)
    forget(tmp_path, is_of_one)
    assert not path.exists()


def test_journals_that_nobody_writes_for_a_day_are_removed(tmp_path: Path) -> None:
    own, old, new = (journal_path(tmp_path, digest) for digest in ("aa", "bb", "cc"))
    rollback = tmp_path / f"{old.name}-journal"
    others = [tmp_path / "chunks.sqlite", tmp_path / "file.kv"]
    for path in (own, old, new, rollback, *others):
        path.write_bytes(b"x")
        if path is not new:
            os.utime(path, (0, time.time() - 90_000))
    remove_abandoned([tmp_path / "missing", tmp_path], own).join()
    assert {*tmp_path.iterdir()} == {own, new, *others}
    remove_abandoned([tmp_path], None).join()
    assert {*tmp_path.iterdir()} == {new, *others}
