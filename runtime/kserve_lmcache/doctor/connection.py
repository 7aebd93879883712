"""The remote store as its checks know it, and the way to it: name, TCP connection, Unix socket."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import redis

from kserve_lmcache.config.store_url import Address
from kserve_lmcache.config.stores import RedisLocation, Remote
from kserve_lmcache.doctor.check import Finding, failure, ok, reason_of, warning, within
from kserve_lmcache.doctor.context import Context
from kserve_lmcache.tiers.redis import client as redis_client


class CheckedStore:
    """A remote store. A check reads what the checks before it have written here."""

    def __init__(self, context: Context, remote: Remote, location: RedisLocation) -> None:
        self.context = context
        self.timeout, self.quote = context.timeout, context.quote
        self.remote = remote
        self.setting = f"remote_url ({remote.source})"  # for a fix
        self.location = location
        # In the order of the URL: the servers with an address, and those that can be connected to.
        self.resolved: list[Address] = []
        self.reached: list[Address] = []
        self.primary: Address | None = None  # the server that a sentinel names
        # The answers to INFO of all primaries, by address; empty when INFO is refused.
        self.information: dict[str, dict[str, Any]] = {}

    @property
    def address(self) -> Address | None:
        """The server to ask; ``None`` for a Unix socket."""
        return None if self.location.socket_path else self.primary or self.reached[0]

    @property
    def place(self) -> str:
        """``HOST:PORT`` of that server, or the socket's path."""
        return show(self.address) if self.address else self.location.socket_path

    @cached_property
    def client(self) -> redis.Redis:
        """A client of that server alone, even if the server is part of a cluster."""
        return redis_client.node_client(self.remote, self.address, self.timeout)

    @property
    def user(self) -> str:
        """The name of the user, for people."""
        return f"user {self.remote.username!r}" if self.remote.username else "the default user"

    def close(self) -> None:
        """Closes the client's connections."""
        if "client" in vars(self):
            self.client.close()

    def no_answer(self, place: str, what: str) -> Finding:
        """Returns the finding of a server that has not done ``what`` in time."""
        return failure(
            f"{place} {what} within {self.timeout:g} s",
            "Find out why the server hangs, or whether another service listens there "
            f"({self.remote.source}).",
        )


def show(address: Address) -> str:
    """Returns ``HOST:PORT``, as a URL has it."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def resolve(store: CheckedStore) -> Finding:
    """Asks the name service for every host of the URL."""
    good, bad = [], []
    store.resolved.clear()
    for host, port in store.location.addresses:
        try:
            numbers = within(store.timeout, partial(_numbers, host))
        except (OSError, UnicodeError) as error:
            service = "the name service: " if isinstance(error, TimeoutError) else ""
            bad.append(f"{host} cannot be resolved ({service}{reason_of(error)})")
        else:
            store.resolved.append((host, port))
            good.append(f"{host} is {'an address' if numbers == [host] else ', '.join(numbers)}")
    fix = f"Correct the host in {store.setting}; in Kubernetes a service of another namespace is "
    return _together(good, bad, f"{fix}SERVICE.NAMESPACE.svc.")


def connect(store: CheckedStore) -> Finding:
    """Connects to every server that has an address."""
    good, bad = [], []
    store.reached.clear()
    fix = f"Look for a firewall or a NetworkPolicy on the way, or correct {store.setting}."
    for address in store.resolved:
        timeout = store.timeout / len(store.location.addresses)
        try:
            good.append(within(timeout, partial(_peer, address, 2 * timeout)))
            store.reached.append(address)
        except ConnectionRefusedError:
            bad.append(f"{show(address)} refuses the connection")
            fix = (
                f"Start the server, or correct the port in {store.setting}; a server listens only "
            )
            fix += "on the addresses of its bind setting."
        except OSError as error:
            bad.append(f"{show(address)}: {reason_of(error)}")
    return _together(good, bad, fix)


def connect_unix_socket(store: CheckedStore) -> Finding:
    """Connects to the store's Unix socket."""
    path = store.location.socket_path
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(store.timeout)
            client.connect(path)
    except OSError as error:
        return failure(
            f"{path}: {reason_of(error)}",
            "Start the server, mount its socket here and let this user write to it, or correct "
            f"{store.setting}.",
        )
    return ok(path)


def _numbers(host: str) -> list[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _peer(address: Address, timeout: float) -> str:
    with socket.create_connection(address, timeout) as connection:
        return show(connection.getpeername()[:2])


def _together(good: Sequence[str], bad: Sequence[str], fix: str) -> Finding:
    evidence = ", ".join(dict.fromkeys((*good, *bad)))
    if not bad:
        return ok(evidence)
    return (warning if good else failure)(evidence, fix)
