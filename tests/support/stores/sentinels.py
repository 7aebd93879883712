"""Redis under sentinels: who is the primary, and its replacement."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from tests.support.ports import free_port
from tests.support.processes import Process
from tests.support.stores.binaries import redis_binary
from tests.support.stores.store import Store, node, wait_for

SERVICE = "mymaster"
# How long a primary is silent until a sentinel calls it down.
DOWN_AFTER_MS = 500
FAILOVER_SECONDS = 30.0


@dataclass
class Watched:
    """A primary with its replicas, and the sentinels that watch them.

    Attributes:
        nodes: the primary and the replicas, in no order.
    """

    service: str
    sentinels: list[Store]
    nodes: list[Store]

    @property
    def password(self) -> str | None:
        """Of the nodes; the sentinels have none."""
        return self.nodes[0].password

    @property
    def url(self) -> str:
        """Without the password."""
        addresses = ",".join(f"{store.host}:{store.port}" for store in self.sentinels)
        return f"redis-sentinel://{addresses}/{self.service}"

    def primary(self) -> Store:
        """By the word of the first sentinel that answers."""
        for store in self.sentinels:
            with contextlib.suppress(redis.ConnectionError):
                named = _address(store, self.service)
                return next(node for node in self.nodes if (node.host, node.port) == named)
        raise AssertionError("no sentinel answers")

    def kill_primary(self) -> Store:
        """End the primary at once: which it was. The sentinels have yet to see it."""
        before = self.primary()
        before.kill()
        return before

    def wait_for_another(self, before: Store) -> Store:
        """Wait until another than ``before`` is the primary by all sentinels' word: which."""

        def agreed() -> bool:
            found = {_address(store, self.service) for store in self.sentinels}
            return len(found) == 1 and found != {(before.host, before.port)}

        wait_for("other primary", FAILOVER_SECONDS, *self.sentinels, ready=agreed)
        found = self.primary()
        wait_for("promotion", FAILOVER_SECONDS, found, ready=lambda: _role(found) == "master")
        return found


@contextmanager
def sentinel(
    directory: Path,
    service: str,
    primary: Store,
    quorum: int = 1,
    binary: str | None = None,
    down_after_ms: int | None = None,
    password: str | None = None,
) -> Iterator[Store]:
    """A sentinel process that watches ``primary`` under the name of ``service``.

    ``password`` is the sentinel's own.
    """
    port = free_port()
    configuration = directory / f"sentinel-{port}.conf"
    lines = [
        f"port {port}",
        "bind 127.0.0.1",
        f"dir {directory}",
        f"sentinel monitor {service} {primary.host} {primary.port} {quorum}",
    ]
    if primary.password:
        lines.append(f"sentinel auth-pass {service} {primary.password}")
    if password:
        lines.append(f"requirepass {password}")
    if down_after_ms:
        lines.append(f"sentinel down-after-milliseconds {service} {down_after_ms}")
        lines.append(f"sentinel failover-timeout {service} {10 * down_after_ms}")
    configuration.write_text("\n".join(lines) + "\n")
    command = [binary or redis_binary(), str(configuration), "--sentinel"]
    store = Store(
        "127.0.0.1", port, Process(command, directory / f"sentinel-{port}.log"), password=password
    )
    try:
        store.wait_until_it_answers()
        yield store
    finally:
        store.stop()


@contextmanager
def watched_by_sentinels(
    directory: Path, *options: str, binary: str | None = None, password: str | None = None
) -> Iterator[Watched]:
    """A primary, a replica and three sentinels who all know each other."""
    options = ("--repl-diskless-sync-delay", "0", *options)
    fields: dict[str, Any] = {"binary": binary, "password": password}
    with ExitStack() as stack:
        if password:  # a primary that comes back as a replica must log in as well
            options = ("--masterauth", password, *options)
        primary = stack.enter_context(node(directory, *options, **fields))
        of = ("--replicaof", primary.host, str(primary.port))
        replica = stack.enter_context(node(directory, *of, *options, **fields))
        wait_for("replica", 15, primary, replica, ready=lambda: _in_sync(replica))
        sentinels = [
            stack.enter_context(
                sentinel(directory, SERVICE, primary, 2, binary, down_after_ms=DOWN_AFTER_MS)
            )
            for _ in range(3)
        ]
        wait_for(
            "sentinels that know each other",
            20,
            *sentinels,
            ready=lambda: all(_knows(store, replicas=1, sentinels=2) for store in sentinels),
        )
        yield Watched(SERVICE, sentinels, [primary, replica])


def _address(sentinel_store: Store, service: str) -> tuple[str, int]:
    with closing(sentinel_store.client(decode_responses=True)) as client:
        host, port = client.sentinel_get_master_addr_by_name(service)
        return host, port


def _role(store: Store) -> str:
    with closing(store.client()) as client:
        return str(client.info("replication")["role"])


def _in_sync(replica: Store) -> bool:
    with closing(replica.client()) as client:
        return bool(client.info("replication").get("master_link_status") == "up")


def _knows(store: Store, replicas: int, sentinels: int) -> bool:
    with closing(store.client()) as client:
        found = client.sentinel_master(SERVICE)
        return (found["num-slaves"], found["num-other-sentinels"]) == (replicas, sentinels)
