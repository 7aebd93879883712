"""The NetworkPolicies admit the flows that are declared here, and no other."""

from __future__ import annotations

import pytest

from tests.packaging.manifests import documents
from tests.packaging.network import Peer, flows
from tests.packaging.pods import Document, pods

DNS, OPENSHIFT_DNS, HTTP, HTTPS, REDIS, SENTINEL = 53, 5353, 8080, 443, 6379, 26379
LM, MOONCAKE, MEMORY = 65432, 50051, 15000
PORTS = [(port, "TCP") for port in (22, HTTP, HTTPS, REDIS, SENTINEL, LM, MOONCAKE, MEMORY)]
PORTS += [(DNS, "UDP"), (OPENSHIFT_DNS, "UDP")]

GATEWAY = Peer("gateway", {"app": "gateway"}, namespace="istio-system")
PROMETHEUS = Peer("prometheus", {"app": "prometheus"}, namespace="monitoring")
CALLER = Peer("caller", {"kserve-lmcache/api-client": "true"})
NEIGHBOUR = Peer("neighbour", {"app": "web"})
RESOLVER = Peer("resolver", {"k8s-app": "kube-dns"}, namespace="kube-system")
# A node's cache of DNS is no pod that a policy could select.
NODE_DNS = Peer("node's DNS cache", address="169.254.20.10", outside=True)
OPENSHIFT = Peer("OpenShift's resolver", {"dns": "default"}, namespace="openshift-dns")
RESOLVERS = {
    RESOLVER.name: [DNS],
    NODE_DNS.name: [DNS],
    OPENSHIFT.name: [OPENSHIFT_DNS],
}
HUB = Peer("hub", address="18.0.0.1", outside=True)
HUB_6 = Peer("hub by IPv6", address="2600:1f18::1", outside=True)
NODE = Peer("node's metadata", address="169.254.169.254", outside=True)
OUTSIDE_6 = [
    Peer("the cluster's IPv6", address="fd00:10:96::1", outside=True),
    Peer("a node's IPv6", address="fe80::1", outside=True),
]


def _set_peers(name: str) -> tuple[list[Document], list[Peer]]:
    applied = documents(name)
    policies = [document for document in applied if document["kind"] == "NetworkPolicy"]
    peers = [GATEWAY, PROMETHEUS, CALLER, NEIGHBOUR, HUB, HUB_6, NODE, *OUTSIDE_6]
    peers += [RESOLVER, NODE_DNS, OPENSHIFT]
    for document in applied:
        for pod, role in zip(pods(document), ("", " worker"), strict=False):
            ports = {
                port["name"]: port["containerPort"]
                for container in pod.containers
                for port in container.spec.get("ports", [])
            }
            own = document["metadata"]["name"]
            if document["kind"] == "StatefulSet":
                peers += [Peer(f"store {n}", pod.labels, ports=ports) for n in (0, 1)]
            elif own in ("kserve-lmcache", "kserve-lmcache-multinode"):
                peer = Peer((own + role).replace("kserve-lmcache", "predictor"), pod.labels)
                peers.append(peer)
                # The same labels in another namespace are another's pod.
                if own == "kserve-lmcache":
                    peers.append(Peer("stranger", pod.labels, namespace="others"))
    return policies, peers


PREDICTORS = ("predictor", "predictor-multinode", "predictor-multinode worker")
STORE_PORTS = {
    "redis": {REDIS},
    "valkey": {REDIS},
    "redis-sentinel": {REDIS, SENTINEL},
    "lmcache-server": {LM},
    "mooncake": {MOONCAKE, HTTP, MEMORY, LM, SENTINEL},  # a range of ports for its memory
}


@pytest.mark.parametrize("store", STORE_PORTS)
def test_exactly_the_declared_flows_pass(store: str) -> None:
    policies, peers = _set_peers(f"all with {store}")
    declared = {
        (predictor, f"store {number}", port)
        for predictor in PREDICTORS
        for number in (0, 1)
        for port in STORE_PORTS[store]
    }
    serving = PREDICTORS[:2]
    for client in (GATEWAY, PROMETHEUS, CALLER):
        declared |= {(client.name, predictor, HTTP) for predictor in serving}
    # Ray and NCCL, between the pods of services on many nodes.
    declared |= {
        (client, server, port)
        for client, server in ((PREDICTORS[1], PREDICTORS[2]), (PREDICTORS[2], PREDICTORS[1]))
        for port, protocol in PORTS
        if port >= 1024 and protocol == "TCP"
    }
    resolving = [*PREDICTORS, *(("store 0", "store 1") if store == "redis-sentinel" else ())]
    declared |= {
        (each, name, port)
        for each in resolving
        for name, ports in RESOLVERS.items()
        for port in ports
    }
    declared |= {(predictor, hub.name, HTTPS) for predictor in serving for hub in (HUB, HUB_6)}
    if store == "redis-sentinel":
        declared |= {
            (f"store {one}", f"store {1 - one}", port)
            for one in (0, 1)
            for port in STORE_PORTS[store]
        }
    ours = {peer.name for peer in peers if peer.name.startswith(("predictor", "store"))}
    found = {
        (client, server, port)
        for client, server, port in flows(policies, peers, PORTS)
        if client in ours or server in ours
    }
    assert found == declared


def test_a_wider_policy_is_found() -> None:
    policies, peers = _set_peers("all with redis")
    (store,) = (policy for policy in policies if policy["metadata"]["name"] == "lmcache-remote")
    store["spec"]["ingress"][0]["from"].append({"podSelector": {}})
    assert ("neighbour", "store 0", REDIS) in set(flows(policies, peers, PORTS))
    assert ("stranger", "store 0", REDIS) not in set(flows(policies, peers, PORTS))
    store["spec"]["ingress"][0]["from"].append({"namespaceSelector": {}})
    assert ("stranger", "store 0", REDIS) in set(flows(policies, peers, PORTS))


def test_without_policies_everyone_reaches_everyone() -> None:
    _, peers = _set_peers("all with redis")
    assert ("stranger", "store 0", REDIS) in set(flows([], peers, PORTS))
