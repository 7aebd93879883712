"""What the stages of a Redis store know of it, as one after the other finds it out."""

from __future__ import annotations

from typing import Any

import redis

from kserve_lmcache.config.stores import Address, RedisLocation, Remote
from kserve_lmcache.doctor.check import Subject, foreign
from kserve_lmcache.doctor.network import Road, show
from kserve_lmcache.tiers.redis import client as redis_client

Information = dict[str, Any]


class Session:
    """One store under examination.

    Attributes:
        remote: the store.
        location: where its URL points.
        patience: seconds to wait for one answer.
        value_bytes: the size of a value to try it with.
        road: the road to the servers named in the URL.
        primary: what a sentinel names as the primary; ``None`` until it has.
        information: answer to INFO of every primary, by its address; empty when INFO is refused.
    """

    def __init__(self, remote: Remote, location: RedisLocation, subject: Subject) -> None:
        self.remote = remote
        self.location = location
        self.patience = subject.patience
        self.value_bytes = subject.value_bytes
        self.road = Road(remote, location.addresses, subject.patience)
        self.primary: Address | None = None
        self.information: dict[str, Information] = {}
        self._client: redis.Redis | None = None

    @property
    def address(self) -> Address | None:
        """The server that is asked: ``None`` for a Unix socket."""
        if self.location.socket_path:
            return None
        return self.primary or self.road.reached[0]

    @property
    def place(self) -> str:
        """Where that server is, for people."""
        return show(self.address) if self.address else self.location.socket_path

    @property
    def client(self) -> redis.Redis:
        """A client of that server, even if it is one of a cluster."""
        if self._client is None:
            self._client = redis_client.node_client(self.remote, self.address, self.patience)
        return self._client

    def close(self) -> None:
        """Close the client's connections."""
        if self._client is not None:
            self._client.close()

    def said(self, error: BaseException) -> str:
        """What the server or the client says is wrong, without the password."""
        return foreign(error, self.remote)
