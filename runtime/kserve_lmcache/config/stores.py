"""The stores that are asked for: where they are, and who we are there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

# What redis-py speaks, and how each is reached.
REDIS_SCHEMES = (
    "redis",
    "rediss",
    "unix",
    "redis-sentinel",
    "redis-cluster",
    "valkey",
    "valkeys",
)
TLS_SCHEMES = ("rediss", "valkeys")
LARGEST_FILE = 2**20  # bytes; a Secret holds no more


def password_of(content: bytes) -> str:
    """The password that a file of ``content`` holds.

    Raises:
        UnicodeDecodeError: it is no text.
    """
    # Editors and "echo" end a file with a newline, which is no part of the password.
    return content.decode("utf-8").rstrip("\r\n")


@dataclass(frozen=True)
class Remote:
    """A remote store, its credentials apart from its address.

    Attributes:
        url: without user and password, so that it can be shown.
        source: where the URL was set (``file:line``, a variable or a flag).
        username: of a Redis ACL; ``None`` for the default user.
        password: never shown.
        ca_file: PEM file of the authorities that may sign the server's certificate; ``None``
            for the system's.
        cert_file: PEM file of our own certificate, for mutual TLS.
        key_file: PEM file of its key.
        password_file: where the password came from, if from a file.
    """

    url: str
    source: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    password_file: str | None = None

    def read_password(self) -> str:
        """The password that the file holds now.

        Raises:
            OSError: it cannot be read.
            UnicodeDecodeError: it is no text.
        """
        with Path(self.password_file or "").open("rb") as file:
            return password_of(file.read(LARGEST_FILE))

    @property
    def scheme(self) -> str:
        """The URL's scheme, in lower case."""
        return urlsplit(self.url).scheme

    @property
    def speaks_redis(self) -> bool:
        """Whether redis-py can talk to it."""
        return self.scheme in REDIS_SCHEMES

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme in TLS_SCHEMES


@dataclass(frozen=True)
class Disk:
    """A store on the disks of this machine.

    Attributes:
        directories: one for each disk; the engine's workers are spread over them.
        most_bytes: that the files of one directory may take from its disk.
    """

    directories: tuple[str, ...]
    most_bytes: int

    def directory_of(self, worker: int) -> str:
        """The directory of a worker, by its number."""
        return self.directories[worker % len(self.directories)]
