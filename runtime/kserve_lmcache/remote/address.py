"""The remote tier that is asked for: where it is, and who we are there."""

from __future__ import annotations

from dataclasses import dataclass, field
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
    """

    url: str
    source: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

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
