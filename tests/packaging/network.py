"""What a set of NetworkPolicies lets through, as a network plugin decides it.

https://kubernetes.io/docs/concepts/services-networking/network-policies/
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.packaging.pods import Document
from tests.packaging.rules.network import selects

NAMESPACE = "models"  # where the documents are applied


@dataclass(frozen=True)
class Peer:
    """A pod somewhere in the cluster, or an address outside of it.

    Attributes:
        ports: the named ports that it opens.
    """

    name: str
    labels: dict[str, str] = field(default_factory=dict)
    namespace: str = NAMESPACE
    address: str = "10.0.0.9"
    ports: dict[str, int] = field(default_factory=dict)
    outside: bool = False


def admits(
    policies: Sequence[Document], client: Peer, server: Peer, port: int, protocol: str = "TCP"
) -> bool:
    """Whether a connection is let out of the client and into the server."""
    return _open(policies, "Egress", client, server, server, port, protocol) and _open(
        policies, "Ingress", server, client, server, port, protocol
    )


def _open(
    policies: Sequence[Document],
    direction: str,
    own: Peer,
    other: Peer,
    server: Peer,
    port: int,
    protocol: str,
) -> bool:
    if own.outside or own.namespace != NAMESPACE:
        return True
    holding = [
        policy["spec"]
        for policy in policies
        if direction in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"], own.labels)
    ]
    field_name, peers = ("egress", "to") if direction == "Egress" else ("ingress", "from")
    return not holding or any(
        any(_is(peer, other) for peer in rule[peers])
        and any(
            each.get("protocol", "TCP") == protocol and port in _numbers(each, server)
            for each in rule["ports"]
        )
        for spec in holding
        for rule in spec.get(field_name, [])
    )


def _is(peer: dict[str, Any], other: Peer) -> bool:
    if "ipBlock" in peer:
        address = ipaddress.ip_address(other.address)
        block = peer["ipBlock"]
        return address in ipaddress.ip_network(block["cidr"]) and not any(
            address in ipaddress.ip_network(each) for each in block.get("except", [])
        )
    if other.outside:
        return False
    if "namespaceSelector" in peer:
        labels = {"kubernetes.io/metadata.name": other.namespace}
        if not selects(peer["namespaceSelector"], labels):
            return False
    elif other.namespace != NAMESPACE:
        return False
    return selects(peer.get("podSelector", {}), other.labels)


def _numbers(port: dict[str, Any], server: Peer) -> range:
    first = port["port"]
    if isinstance(first, str):
        if first not in server.ports:
            return range(0)
        first = server.ports[first]
    return range(first, port.get("endPort", first) + 1)


def flows(
    policies: Sequence[Document], peers: Sequence[Peer], ports: Sequence[tuple[int, str]]
) -> Iterator[tuple[str, str, int]]:
    """Who reaches whom at which port, of these."""
    for client in peers:
        for server in peers:
            for port, protocol in ports:
                if client is not server and admits(policies, client, server, port, protocol):
                    yield client.name, server.name, port
