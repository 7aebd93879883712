"""The stores of the remote tier and the disk tier: their addresses and credentials."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kserve_lmcache.config import store_url
from kserve_lmcache.config.store_url import Address

# The schemes whose stores are reached with redis-py.
REDIS_SCHEMES = (
    "redis",
    "rediss",
    "unix",
    "redis-sentinel",
    "rediss-sentinel",
    "redis-cluster",
    "valkey",
    "valkeys",
)
TLS_SCHEMES = ("rediss", "valkeys", "rediss-sentinel")
SENTINEL_SCHEMES = ("redis-sentinel", "rediss-sentinel")
LARGEST_FILE = 2**20  # bytes, the limit of a Kubernetes Secret


def read_password(path: str) -> str:
    """Reads the current password from a password file.

    Raises:
        OSError: the file cannot be read.
        UnicodeDecodeError: the file is not UTF-8.
    """
    with Path(path).open("rb") as file:
        return password_of(file.read(LARGEST_FILE))


def password_of(content: bytes) -> str:
    """Returns the password in the content of a password file.

    Raises:
        UnicodeDecodeError: the content is not UTF-8.
    """
    return without_line_end(content.decode("utf-8"))


def without_line_end(password: str) -> str:
    """Returns a password without the line break with which editors and ``echo`` end a text."""
    return password.rstrip("\r\n")


@dataclass(frozen=True)
class RedisLocation:
    """The parts of a Redis URL.

    Attributes:
        addresses: host and port of every server in the URL; empty for a Unix socket.
        socket_path: path of the Unix socket, else empty.
        service: name of the sentinels' service, else empty.
        database: number of the database.
    """

    addresses: tuple[Address, ...] = ()
    socket_path: str = ""
    service: str = ""
    database: int = 0


@dataclass(frozen=True)
class Remote:
    """A remote store: its URL, and its credentials beside the URL.

    Attributes:
        url: without user and password, so that logs may show it.
        source: where the URL was set (``file:line``, a variable or a flag).
        username: user of a Redis ACL; ``None`` for the default user.
        password: never shown.
        ca_file: PEM file of the authorities that may sign the server's certificate; ``None``
            for the system's.
        cert_file: PEM file of the client's certificate, for mutual TLS.
        key_file: PEM file of the client's key.
        password_file: file that the password came from, if any.
        sentinel_username: user of the sentinels; ``None`` for their default user.
        sentinel_password: of the sentinels; never shown. ``None`` for sentinels without one.
        sentinel_password_file: file that the sentinels' password came from, if any.
    """

    url: str
    source: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    password_file: str | None = None
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    sentinel_password_file: str | None = None

    @property
    def secrets(self) -> tuple[str, ...]:
        """The passwords, for what hides them in texts."""
        return tuple(filter(None, (self.password, self.sentinel_password)))

    @property
    def scheme(self) -> str:
        """The URL's scheme, in lower case."""
        return store_url.scheme_of(self.url)

    @property
    def speaks_redis(self) -> bool:
        """Whether redis-py can connect to the store."""
        return self.scheme in REDIS_SCHEMES

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme in TLS_SCHEMES

    @property
    def has_sentinels(self) -> bool:
        """Whether the URL names sentinels, which name the server."""
        return self.scheme in SENTINEL_SCHEMES

    def redis_location(self) -> RedisLocation:
        """Parses the URL of a Redis store.

        Raises:
            StoreURLError: the URL is invalid. The message continues "remote_url …".
        """
        url = store_url.parse(self.url)
        path = url.path if self.scheme == "unix" else ""
        return RedisLocation(url.addresses, path, url.service, url.database)


@dataclass(frozen=True)
class Disk:
    """The directories of the disk tier.

    Attributes:
        directories: one for each disk; the engine's workers are spread over them.
        max_bytes: disk space that the files of one directory may occupy.
    """

    directories: tuple[str, ...]
    max_bytes: int

    def directory_of(self, worker: int) -> str:
        """Returns the directory of the worker with this number."""
        return self.directories[worker % len(self.directories)]
