"""What the disk tier's files stand for, for the next process.

One SQLite database beside the files, which only its owner may read: it has the tokens of prompts.
Several processes may use it. It may be lost: then nobody knows what the files are until a lookup
asks for them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 1.0  # for another process that writes
_TABLE = """CREATE TABLE IF NOT EXISTS chunks
    (name TEXT, variant TEXT, content BLOB, PRIMARY KEY (name, variant)) WITHOUT ROWID"""


class Journal:
    """The contents of chunks by name. No method raises; used by one thread.

    Args:
        path: of the database.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._failed = False

    def rows(self) -> list[tuple[str, bytes]]:
        """The names and the contents."""
        return self._try(lambda file: file.execute("SELECT name, content FROM chunks").fetchall())

    def names(self) -> list[str]:
        """The names alone."""
        query = "SELECT DISTINCT name FROM chunks"
        return [name for (name,) in self._try(lambda file: file.execute(query).fetchall())]

    def put(self, rows: Sequence[tuple[str, str, bytes]]) -> None:
        """Add rows: name, variant and content."""
        query = "INSERT OR REPLACE INTO chunks VALUES (?, ?, ?)"
        self._try(lambda file: file.executemany(query, rows).fetchall())

    def delete(self, names: Iterable[str]) -> None:
        """Remove all variants of names."""
        query, rows = "DELETE FROM chunks WHERE name = ?", [(name,) for name in names]
        self._try(lambda file: file.executemany(query, rows).fetchall())

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
                logger.warning("The journal %s fails: %s", self._path, error)
            self.close()
            if type(error) is sqlite3.DatabaseError:  # it is damaged
                with contextlib.suppress(OSError):
                    self._path.unlink()
        return []

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._path.parent.mkdir(0o700, parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
            connection = sqlite3.connect(self._path, timeout=_WAIT_SECONDS)
            # Losing it in a power failure costs little, and a sync takes long.
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute(_TABLE)
            self._connection = connection
        return self._connection
