"""Where a cache server is: a file in a directory that the server and the engine share."""

from __future__ import annotations

from pathlib import Path

import msgspec

_FILE = "cache-server.json"


class Announcement(msgspec.Struct, frozen=True):
    """A server that runs.

    Attributes:
        incarnation: of the server, which no other has.
        socket: the name of its socket in the directory.
        pid: of its process.
        version: of this package.
    """

    incarnation: str
    socket: str
    pid: int
    version: str


def announce(directory: Path, announcement: Announcement) -> None:
    """Announce a server, in place of another.

    Raises:
        OSError: the directory cannot be written.
    """
    path = directory / _FILE
    new = path.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(announcement))
    new.replace(path)


def withdraw(directory: Path) -> None:
    """Announce none."""
    (directory / _FILE).unlink(missing_ok=True)


def announced(directory: Path) -> Announcement | None:
    """The server of the directory; ``None`` where there is none."""
    try:
        return msgspec.json.decode((directory / _FILE).read_bytes(), type=Announcement)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
