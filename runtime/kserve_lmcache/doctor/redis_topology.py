"""Whether the server is what the URL's scheme says: one node, a cluster, a sentinel."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

import redis
from redis.exceptions import NoPermissionError

from kserve_lmcache.config.stores import Address
from kserve_lmcache.doctor.check import Finding, failure, ok, skipped, warning
from kserve_lmcache.doctor.network import show
from kserve_lmcache.doctor.redis_session import Session
from kserve_lmcache.tiers.redis import client as redis_client

NAME = "remote topology"
SENTINEL = "remote sentinel"

_SLOTS = 16384


def sentinel(session: Session) -> Finding:
    """Ask the sentinels where the primary is, and whether it can be reached from here."""
    service, source = session.location.service, session.remote.source
    problems = []
    patience = session.patience / len(session.road.reached)
    for address in session.road.reached:
        client = redis_client.sentinel_client(address, patience)
        try:
            primaries = _primaries(client)
        except redis.AuthenticationError:
            problems.append(f"{show(address)} asks for a password of its own")
        except redis.ResponseError as error:
            problems.append(f"{show(address)} is no sentinel ({session.said(error)})")
        except (redis.RedisError, OSError) as error:
            problems.append(f"{show(address)}: {session.said(error)}")
        else:
            if service in primaries:
                session.primary = primaries[service]
                return _reach(session, session.primary)
            names = ", ".join(sorted(primaries)) or "none"
            problems.append(f"{show(address)} knows no service {service!r}, but {names}")
        finally:
            client.close()
    return failure(
        SENTINEL,
        "; ".join(problems),
        f"Correct the sentinels or the service in remote_url ({source}).",
    )


def _reach(session: Session, primary: Address) -> Finding:
    evidence = f"the primary of {session.location.service} is {show(primary)}"
    try:
        socket.create_connection(primary, session.patience).close()
    except OSError as error:
        return failure(
            SENTINEL,
            f"{evidence}, which cannot be reached: {error.strerror or 'no answer'}",
            "Start it, or let it announce an address that is reachable from here "
            "(replica-announce-ip).",
        )
    return ok(SENTINEL, evidence)


def topology(session: Session) -> Finding:
    """Compare INFO with the scheme."""
    if not session.information:
        return skipped(NAME, "needs INFO, which is refused")
    information = session.information[session.place]
    mode = information.get("redis_mode") or information.get("server_mode") or "standalone"
    if mode == "sentinel":
        return _is_sentinel(session)
    if session.remote.scheme == "redis-cluster":
        return _cluster(session, str(mode))
    if mode == "cluster":
        return _is_cluster(session)
    return _node(session, information)


def _node(session: Session, information: Mapping[str, Any]) -> Finding:
    source = session.remote.source
    if information.get("role") == "slave":
        primary = f"{information.get('master_host')}:{information.get('master_port')}"
        if information.get("slave_read_only"):
            return failure(
                NAME,
                f"a read-only replica of {primary}: nothing can be stored",
                f"Use the address of the primary, {primary}, in remote_url ({source}).",
            )
        return warning(
            NAME,
            f"a replica of {primary}, which overwrites what is stored here",
            f"Use the address of the primary in remote_url ({source}).",
        )
    replicas = int(information.get("connected_slaves") or 0)
    return ok(NAME, f"one node{f' with {replicas} replica(s)' if replicas else ''}")


def _is_sentinel(session: Session) -> Finding:
    try:
        primaries = _primaries(session.client)
    except redis.RedisError:
        primaries = {}
    known = ", ".join(f"{name} is at {show(address)}" for name, address in primaries.items())
    return failure(
        NAME,
        f"{session.place} is a sentinel, which stores nothing",
        f"Use the address of a primary in remote_url ({session.remote.source})"
        f"{f': {known}' if known else ''}.",
    )


def _primaries(client: redis.Redis) -> dict[str, Address]:
    """Every service that a sentinel watches, and where its primary is."""
    states: Any = client.sentinel_masters()
    return {str(name): (str(state["ip"]), int(state["port"])) for name, state in states.items()}


def _is_cluster(session: Session) -> Finding:
    source = session.remote.source
    if session.remote.uses_tls or session.address is None:
        fix = f"Use a server that is not part of a cluster in remote_url ({source})."
    else:
        fix = f"Write redis-cluster://{session.place} in remote_url ({source})."
    return failure(
        NAME,
        f"{session.place} is part of a cluster: it refuses the keys of other nodes",
        fix,
    )


def _cluster(session: Session, mode: str) -> Finding:
    source = session.remote.source
    if mode != "cluster":
        return failure(
            NAME,
            f"{session.place} is one node, not part of a cluster",
            f"Write redis://{session.place} in remote_url ({source}).",
        )
    try:
        state = session.client.cluster("INFO")
    except NoPermissionError:
        state = {}
    slots = int(state.get("cluster_slots_assigned", _SLOTS))
    if state.get("cluster_state", "ok") != "ok":
        return failure(
            NAME,
            f"the cluster is down: {slots} of {_SLOTS} slots have a node",
            "Look at CLUSTER INFO and CLUSTER NODES on the server; give every slot a node.",
        )
    try:
        with redis_client.cluster_client(session.remote, session.patience) as client:
            nodes: Any = client.get_primaries()
            session.information = {node.name: client.info(target_nodes=node) for node in nodes}
    except redis.RedisError as error:
        return failure(
            NAME,
            f"not every primary can be reached from here: {session.said(error)}",
            "Let the nodes announce addresses that are reachable from here "
            "(cluster-announce-ip, cluster-announce-hostname).",
        )
    return ok(NAME, f"a cluster of {len(nodes)} primar{'ies' if len(nodes) > 1 else 'y'}")
