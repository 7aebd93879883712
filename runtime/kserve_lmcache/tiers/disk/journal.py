"""What the disk tier's files stand for, for the next process.

One SQLite database beside the files, which only its owner may read: it has the tokens of prompts.
Several processes may use it. It may be lost: then nobody knows what the files are until a lookup
asks for them.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_NAME = re.compile(r"chunks-[0-9a-f]+\.sqlite")
_ROLLBACK = "-journal"  # SQLite's file of a transaction that runs, or did not end
_WAIT_SECONDS = 5.0  # for another process that writes, or writes the whole file anew
_ABANDONED = 86_400.0  # seconds without a write, after which a journal of another server is removed
_BATCH = 1_000  # names that one transaction removes, so that no other process waits for long
_TABLE = """CREATE TABLE IF NOT EXISTS chunks
    (name TEXT, variant TEXT, content BLOB, PRIMARY KEY (name, variant)) WITHOUT ROWID"""
# Whether pages may have what was removed, or a copy of what was moved to another page.
_WRITTEN, _CLEAN = "PRAGMA user_version = 1", "PRAGMA user_version = 0"


def journal_path(directory: Path, digest: str) -> Path:
    """The path of a journal.

    Args:
        directory: of the disk tier.
        digest: hexadecimal, of what two servers must have in common to share the journal.
    """
    return directory / f"chunks-{digest}.sqlite"


class Journal:
    """The contents of chunks by name. No method raises; used by one thread.

    Args:
        path: of the database.

    Attributes:
        path: as given.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None
        self._failed = False

    def rows(self) -> list[tuple[str, bytes]]:
        """The names and the contents."""
        return self._try(lambda file: file.execute("SELECT name, content FROM chunks").fetchall())

    def names(self) -> list[str]:
        """The names alone."""
        return self._try(_names)

    def put(self, rows: Sequence[tuple[str, str, bytes]]) -> None:
        """Add rows: name, variant and content."""
        self._try(functools.partial(_put, rows=rows))

    def delete(self, names: Iterable[str]) -> None:
        """Remove all variants of names."""
        for batch in _batches(names):
            self._try(functools.partial(_remove, names=batch))

    def keep(self, names: set[str]) -> None:
        """Remove all other names."""
        self.delete(set(self.names()) - names)

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _try(self, run: Callable[[sqlite3.Connection], list[Any]]) -> list[Any]:
        """The result of a transaction; nothing where the file fails."""
        try:
            with self._open() as connection:
                return run(connection)
        except (sqlite3.Error, OSError) as error:
            if not self._failed:
                self._failed = True
                logger.warning("The journal %s fails: %s", self.path, error)
            self.close()
            if _is_damaged(error):
                with contextlib.suppress(OSError):
                    _unlink(self.path)
        return []

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self.path.parent.mkdir(0o700, parents=True, exist_ok=True)
            self._connection = _connect(self.path)
        return self._connection


def forget(directory: Path, selected: Callable[[str], bool]) -> None:
    """Remove names from all journals of a directory, those of other servers included.

    The files have nothing of what was removed, then or earlier. A damaged journal, which nobody can
    read, is removed.

    Args:
        directory: of the disk tier.
        selected: takes a name, and returns whether to remove it.

    Raises:
        OSError: a journal cannot be written.
    """
    for path in _journals(directory):
        try:
            with contextlib.closing(_connect(path)) as file:
                for batch in _batches(filter(selected, _names(file))):
                    with file:
                        _remove(file, batch)
                _rewrite(file)
        except sqlite3.Error as error:
            if not _is_damaged(error):
                raise OSError(f"the journal {path.name} fails: {error}") from error
            _unlink(path)


def remove_abandoned(directories: Iterable[Path], own: Path | None) -> threading.Thread:
    """Remove the journals that nobody has written for a day, in a thread: a disk may be slow.

    Args:
        directories: of the disk tier.
        own: the journal of this server, which stays; ``None`` without one.

    Returns:
        The thread.
    """

    def run() -> None:
        for directory in directories:
            try:
                for path in _journals(directory):
                    with contextlib.suppress(FileNotFoundError):  # another server removed it
                        age = time.time() - path.stat().st_mtime
                        if path != own and age > _ABANDONED:
                            _unlink(path)
            except OSError as error:
                reason = error.strerror or str(error)
                logger.warning("An old journal in %s was not removed: %s", directory, reason)

    thread = threading.Thread(target=run, name="kv-journals", daemon=True)
    thread.start()
    return thread


def _journals(directory: Path) -> list[Path]:
    try:
        with os.scandir(directory) as entries:
            return [
                directory / entry.name
                for entry in entries
                if _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
            ]
    except FileNotFoundError:
        return []


def _connect(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
    connection = sqlite3.connect(path, timeout=_WAIT_SECONDS)
    try:
        # A new file's: rows of a kilobyte or two fit without pages of their own.
        connection.execute("PRAGMA page_size = 16384")
        # Losing it in a power failure costs little, and a sync takes long.
        connection.execute("PRAGMA synchronous = OFF")
        # What is removed are prompts: SQLite overwrites them, and writes no copy of them elsewhere.
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute(_TABLE)
    except BaseException:
        connection.close()
        raise
    return connection


def _names(file: sqlite3.Connection) -> list[str]:
    return [name for (name,) in file.execute("SELECT DISTINCT name FROM chunks")]


def _put(file: sqlite3.Connection, rows: Sequence[tuple[str, str, bytes]]) -> list[Any]:
    file.executemany("INSERT OR REPLACE INTO chunks VALUES (?, ?, ?)", rows)
    return file.execute(_WRITTEN).fetchall()


def _remove(file: sqlite3.Connection, names: Iterable[str]) -> list[Any]:
    file.executemany("DELETE FROM chunks WHERE name = ?", [(name,) for name in names])
    return file.execute(_WRITTEN).fetchall()


def _rewrite(file: sqlite3.Connection) -> None:
    """Write the whole file anew, unless another worker just did.

    Rows that were moved between pages have left copies, which a removal does not find.
    """
    (written,) = file.execute("PRAGMA user_version").fetchone()
    if written:
        file.execute(_CLEAN)  # first: who writes meanwhile sets it again
        try:
            file.execute("VACUUM")
        except sqlite3.Error:
            with contextlib.suppress(sqlite3.Error):
                file.execute(_WRITTEN)
            raise


def _batches(names: Iterable[str]) -> Iterator[list[str]]:
    left = iter(names)
    while batch := list(itertools.islice(left, _BATCH)):
        yield batch


def _is_damaged(error: Exception) -> bool:
    return type(error) is sqlite3.DatabaseError


def _unlink(path: Path) -> None:
    """Remove a journal, its last transaction first: a database without that is a damaged one."""
    path.with_name(path.name + _ROLLBACK).unlink(missing_ok=True)
    path.unlink(missing_ok=True)
