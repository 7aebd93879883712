"""The stores of the remote tier and the disk tier: their addresses and credentials."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

# The schemes whose stores are reached with redis-py.
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
LARGEST_FILE = 2**20  # bytes, the limit of a Kubernetes Secret

_REDIS_PORT = 6379
_SENTINEL_PORT = 26379

Address = tuple[str, int]  # host and port


def password_of(content: bytes) -> str:
    """Returns the password in the content of a password file.

    Raises:
        UnicodeDecodeError: the content is not UTF-8.
    """
    # Editors and "echo" end a file with a newline, which is not part of the password.
    return content.decode("utf-8").rstrip("\r\n")


def parse_addresses(netloc: str, default_port: int | None = None) -> tuple[Address, ...]:
    """Parses ``HOST[:PORT]``, or several of them separated by commas.

    Raises:
        ValueError: a host is missing, a port is missing without a default, or a port is invalid.
    """
    addresses = []
    for part in netloc.split(","):
        split = urlsplit(f"//{part.strip()}")
        if not split.hostname:
            raise ValueError("names no host")
        try:
            port = split.port if split.port is not None else default_port
        except ValueError:  # whose text may quote a password
            raise ValueError(f"names no number as the port of {split.hostname}") from None
        if port is None:
            raise ValueError(f"names no port for {split.hostname}")
        addresses.append((split.hostname, port))
    return tuple(addresses)


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
        """Reads the current password from the password file.

        Raises:
            OSError: the file cannot be read.
            UnicodeDecodeError: the file is not UTF-8.
        """
        with Path(self.password_file or "").open("rb") as file:
            return password_of(file.read(LARGEST_FILE))

    @property
    def scheme(self) -> str:
        """The URL's scheme, in lower case."""
        return urlsplit(self.url).scheme

    @property
    def speaks_redis(self) -> bool:
        """Whether redis-py can connect to the store."""
        return self.scheme in REDIS_SCHEMES

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme in TLS_SCHEMES

    def redis_location(self) -> RedisLocation:
        """Parses the URL of a Redis store.

        Raises:
            ValueError: the URL is invalid. The message continues "remote_url …".
        """
        split = urlsplit(self.url)
        database = parse_qs(split.query).get("db", [""])[0]
        path = unquote(split.path)
        if self.scheme == "unix":
            if not path.strip("/"):
                raise ValueError("names no socket, as unix:///run/redis.sock does")
            return RedisLocation(socket_path=path, database=_database(database))
        first, _, second = path.strip("/").partition("/")
        if self.scheme == "redis-sentinel":
            if not first:
                raise ValueError("names no service, as redis-sentinel://HOST:PORT/SERVICE does")
            addresses = parse_addresses(split.netloc, _SENTINEL_PORT)
            return RedisLocation(addresses, service=first, database=_database(database or second))
        addresses = parse_addresses(split.netloc, _REDIS_PORT)
        return RedisLocation(addresses, database=_database(database or first))


def _database(text: str) -> int:
    if text and not (text.isascii() and text.isdigit()):
        raise ValueError(f"names the database {text!r}, which is not a number")
    return int(text or 0)


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
