"""A Redis cluster of three primaries, and the move of a slot between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.crc import key_slot
from redis.retry import Retry

from tests.support.stores.store import Store, node, wait_for

SLOTS = 16384
NODE_TIMEOUT_MS = 1000


@dataclass
class Cluster:
    """Its nodes, all of them primaries."""

    nodes: list[Store]

    @property
    def password(self) -> str | None:
        return self.nodes[0].password

    @property
    def url(self) -> str:
        """Of all nodes, without the password."""
        return "redis-cluster://" + ",".join(f"{store.host}:{store.port}" for store in self.nodes)

    def client(self, **options: Any) -> redis.RedisCluster:
        """Without retries but the redirections of a cluster."""
        start = [ClusterNode(store.host, store.port) for store in self.nodes]
        login = {"password": self.password, "socket_timeout": 5, "retry": Retry(NoBackoff(), 0)}
        return redis.RedisCluster(startup_nodes=start, **{**login, **options})

    def owner(self, key: str | bytes) -> Store:
        """The node that has the key's slot, by its own word."""
        return next(store for store in self.nodes if _owns(store, key))

    def other_than(self, store: Store) -> Store:
        return next(other for other in self.nodes if other is not store)

    @contextmanager
    def moving(self, key: str | bytes, target: Store) -> Iterator[int]:
        """The key's slot half-way to ``target``, and at the end there: how many keys moved.

        Meanwhile the keys are at ``target`` and the slot is still the old owner's, who answers ASK
        for them.
        """
        source, slot = self.owner(key), key_slot(key.encode() if isinstance(key, str) else key)
        assert source is not target, "the slot is already there"
        names = {store.port: _id(store) for store in self.nodes}
        _run(target, "CLUSTER SETSLOT", slot, "IMPORTING", names[source.port])
        _run(source, "CLUSTER SETSLOT", slot, "MIGRATING", names[target.port])
        moved = 0
        login = ("AUTH", self.password) if self.password else ()
        while keys := _run(source, "CLUSTER GETKEYSINSLOT", slot, 100):
            address = (target.host, target.port, "", 0, 10_000)
            _run(source, "MIGRATE", *address, *login, "KEYS", *keys)
            moved += len(keys)
        yield moved
        # The target first: it must own the slot before the source forgets it.
        for store in (target, source, *self.nodes):
            _run(store, "CLUSTER SETSLOT", slot, "NODE", names[target.port])

    def move_slot(self, key: str | bytes, target: Store) -> int:
        """Move the key's slot to ``target`` while the cluster serves: how many keys moved."""
        with self.moving(key, target) as moved:
            return moved

    def wait_until_whole(self) -> None:
        """Wait until every node sees every slot served."""
        wait_for(
            "whole cluster",
            20,
            *self.nodes,
            ready=lambda: all(
                _run(store, "CLUSTER INFO")["cluster_state"] == "ok"
                and int(_run(store, "CLUSTER INFO")["cluster_known_nodes"]) == len(self.nodes)
                for store in self.nodes
            ),
        )


@contextmanager
def redis_cluster(
    directory: Path, *options: str, binary: str | None = None, password: str | None = None
) -> Iterator[Cluster]:
    """Three primaries without replicas, formed by CLUSTER commands."""
    with ExitStack() as stack:
        nodes = []
        for number in range(3):
            own = directory / f"node-{number}"
            own.mkdir()
            enabled = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT_MS))
            nodes.append(
                stack.enter_context(node(own, *enabled, *options, binary=binary, password=password))
            )
        for number, store in enumerate(nodes):
            first, last = (SLOTS * each // len(nodes) for each in (number, number + 1))
            _run(store, "CLUSTER ADDSLOTS", *range(first, last))
            _run(store, "CLUSTER SET-CONFIG-EPOCH", number + 1)
            _run(store, "CLUSTER MEET", nodes[0].host, nodes[0].port)
        cluster = Cluster(nodes)
        cluster.wait_until_whole()
        yield cluster


def _run(store: Store, command: str, *arguments: Any) -> Any:
    with closing(store.client()) as client:
        return client.execute_command(command, *arguments)


def _id(store: Store) -> str:
    name = _run(store, "CLUSTER MYID")
    return name.decode() if isinstance(name, bytes) else str(name)


def _owns(store: Store, key: str | bytes) -> bool:
    try:
        _run(store, "EXISTS", key)
    except redis.exceptions.MovedError:
        return False
    except redis.exceptions.AskError:  # on its way from here
        return True
    return True
