"""Whether the server is what the URL's scheme says: one node, a cluster, a sentinel."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

import redis
from redis.exceptions import NoPermissionError

from kserve_lmcache.config.store_url import Address
from kserve_lmcache.doctor.check import Finding, failure, ok, reason_of, warning
from kserve_lmcache.doctor.connection import CheckedStore, show
from kserve_lmcache.doctor.redis_server import NEEDS_INFO
from kserve_lmcache.tiers.redis import client as redis_client
from kserve_lmcache.tiers.redis.store import CLUSTER_COMMANDS

_SLOTS = 16384


def sentinel(store: CheckedStore) -> Finding:
    """Asks the sentinels where the primary is, and connects to it."""
    service, problems = store.location.service, []
    fix = f"Correct the sentinels or the service in {store.setting}."
    for address in store.reached:
        try:
            timeout = store.timeout / len(store.reached)
            with redis_client.sentinel_client(store.remote, address, timeout) as client:
                primaries = _primaries(client)
        except redis.AuthenticationError as error:
            if store.remote.sentinel_password:
                reason = store.quote(error)
                problems.append(f"{show(address)} refuses remote_sentinel_password ({reason})")
            else:
                problems.append(f"{show(address)} asks for a password of its own")
                fix = (
                    "Set LMCACHE_REMOTE_SENTINEL_PASSWORD, or "
                    "LMCACHE_REMOTE_SENTINEL_PASSWORD_FILE to a mounted Secret."
                )
        except redis.ResponseError as error:
            problems.append(f"{show(address)} is no sentinel ({store.quote(error)})")
        except (redis.RedisError, OSError) as error:
            problems.append(f"{show(address)}: {store.quote(error)}")
        else:
            if service in primaries:
                return _reach(store, primaries[service])
            names = ", ".join(sorted(primaries)) or "none"
            problems.append(f"{show(address)} knows no service {service!r}, but {names}")
    return failure("; ".join(problems), fix)


def _reach(store: CheckedStore, primary: Address) -> Finding:
    store.primary = primary
    evidence = f"the primary of {store.location.service} is {show(primary)}"
    try:
        socket.create_connection(primary, store.timeout).close()
    except OSError as error:
        return failure(
            f"{evidence}, which cannot be reached: {reason_of(error) or 'no answer'}",
            "Start it, or let it announce an address that is reachable from here "
            "(replica-announce-ip).",
        )
    return ok(evidence)


def topology(store: CheckedStore) -> Finding:
    """Compares INFO with the scheme."""
    if not store.information:
        return NEEDS_INFO
    information, place = store.information[store.place], store.place
    mode = information.get("redis_mode") or information.get("server_mode") or "standalone"
    if mode == "sentinel":
        try:
            primaries = _primaries(store.client)
        except redis.RedisError:
            primaries = {}
        known = ", ".join(f"{name} is at {show(primary)}" for name, primary in primaries.items())
        fix = f"Use the address of a primary in {store.setting}{f': {known}' if known else ''}."
        return failure(f"{place} is a sentinel, which stores nothing", fix)
    if store.remote.scheme == "redis-cluster":
        if mode == "cluster":
            return _cluster(store)
        fix = f"Write redis://{place} in {store.setting}."
        return failure(f"{place} is one node, not part of a cluster", fix)
    if mode == "cluster":
        fix = f"Write redis-cluster://{place} in {store.setting}."
        if store.remote.uses_tls or store.address is None:
            fix = f"Use a server that is not part of a cluster in {store.setting}."
        return failure(f"{place} is part of a cluster: it refuses the keys of other nodes", fix)
    return _node(store, information)


def _node(store: CheckedStore, information: Mapping[str, Any]) -> Finding:
    if information.get("role") == "slave":
        primary = f"{information.get('master_host')}:{information.get('master_port')}"
        fix = f"Use the address of the primary, {primary}, in {store.setting}."
        if information.get("slave_read_only"):
            return failure(f"a read-only replica of {primary}: nothing can be stored", fix)
        return warning(f"a replica of {primary}, which overwrites what is stored here", fix)
    replicas = int(information.get("connected_slaves") or 0)
    return ok(f"one node{f' with {replicas} replica(s)' if replicas else ''}")


def _cluster(store: CheckedStore) -> Finding:
    try:
        state = store.client.cluster("INFO")
    except NoPermissionError:
        state = {}
    if state.get("cluster_state", "ok") != "ok":
        slots = state.get("cluster_slots_assigned", "some")
        fix = "Look at CLUSTER INFO and CLUSTER NODES on the server; give every slot a node."
        return failure(f"the cluster is down: {slots} of {_SLOTS} slots have a node", fix)
    try:
        with redis_client.cluster_client(store.remote, store.timeout) as client:
            nodes: Any = client.get_primaries()
            store.information = {node.name: client.info(target_nodes=node) for node in nodes}
    except NoPermissionError as error:
        rights = " ".join(f"+{name}" for name in CLUSTER_COMMANDS)
        fix = f"Allow this user to see the cluster: ACL SETUSER … {rights}."
        return failure(f"the layout of the cluster is refused: {store.quote(error)}", fix)
    except redis.RedisError as error:
        return failure(
            f"not every primary can be reached from here: {store.quote(error)}",
            "Let the nodes announce addresses that are reachable from here "
            "(cluster-announce-ip, cluster-announce-hostname).",
        )
    return ok(f"a cluster of {len(nodes)} primar{'ies' if len(nodes) > 1 else 'y'}")


def _primaries(client: redis.Redis) -> dict[str, Address]:
    """Returns the primary of every service that a sentinel watches."""
    states: Any = client.sentinel_masters()
    return {str(name): (str(state["ip"]), int(state["port"])) for name, state in states.items()}
