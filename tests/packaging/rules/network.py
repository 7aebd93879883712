"""Rules about Services and NetworkPolicies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tests.packaging.pods import Document, Pod, all_pods, label
from tests.packaging.rules.fault import Fault, Rule


def _selectors(documents: Sequence[Document]) -> Iterator[Fault]:
    for service in _of_kind(documents, "Service"):
        wanted = service["spec"].get("selector", {})
        if not _meets({"matchLabels": wanted}, documents):
            yield label(service), f"selects {wanted}, which no pod template carries"
    for kind, field in (("PodDisruptionBudget", "selector"), ("PodMonitor", "selector")):
        for document in _of_kind(documents, kind):
            if not _meets(document["spec"].get(field, {}), documents):
                yield label(document), "selects no pod of this set"


def _service_ports(documents: Sequence[Document]) -> Iterator[Fault]:
    for service in _of_kind(documents, "Service"):
        chosen = _meets({"matchLabels": service["spec"].get("selector", {})}, documents)
        opened = {value for pod in chosen for port in _ports(pod) for value in port.values()}
        names = [port.get("name") for port in service["spec"].get("ports", [])]
        if len(names) != len(set(names)):
            yield label(service), f"has ports of one name: {names}"
        for port in service["spec"].get("ports", []):
            target = port.get("targetPort", port["port"])
            if chosen and target not in opened:
                yield label(service), f"leads to port {target}, which its pods do not open"


def _policies(documents: Sequence[Document]) -> Iterator[Fault]:
    for policy in _of_kind(documents, "NetworkPolicy"):
        spec = policy["spec"]
        chosen = _meets(spec.get("podSelector", {}), documents)
        if not chosen:
            yield label(policy), "selects no pod of this set"
        if not spec.get("podSelector"):
            yield label(policy), "selects every pod of the namespace"
        if set(spec.get("policyTypes", [])) != {"Ingress", "Egress"}:
            yield label(policy), "leaves one direction open (policyTypes)"
        opened = {value for pod in chosen for port in _ports(pod) for value in port.values()}
        for direction, peers in (("ingress", "from"), ("egress", "to")):
            for rule in spec.get(direction, []):
                if not rule.get(peers) or {} in rule[peers]:
                    yield label(policy), f"has an {direction} rule for everyone"
                if not rule.get("ports"):
                    yield label(policy), f"has an {direction} rule for every port"
        for rule in spec.get("ingress", []):
            for port in rule.get("ports", []):
                if isinstance(port.get("port"), str) and port["port"] not in opened:
                    yield label(policy), f"admits to the port {port['port']}, which nobody opens"


def _closed_stores(documents: Sequence[Document]) -> Iterator[Fault]:
    """A store behind a Service without a policy is open to the whole cluster."""
    policies = _of_kind(documents, "NetworkPolicy")
    for service in _of_kind(documents, "Service"):
        for pod in _meets({"matchLabels": service["spec"].get("selector", {})}, documents):
            if not any(selects(p["spec"].get("podSelector", {}), pod.labels) for p in policies):
                yield pod.owner, "is reached by anyone in the cluster: it has no NetworkPolicy"


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector meets labels; the empty one meets all."""
    for name, value in selector.get("matchLabels", {}).items():
        if labels.get(name) != value:
            return False
    for expression in selector.get("matchExpressions", []):
        inside = labels.get(expression["key"]) in expression.get("values", [])
        if inside is not (expression["operator"] == "In"):
            return False
    return True


def _meets(selector: dict[str, Any], documents: Sequence[Document]) -> list[Pod]:
    return [pod for pod in all_pods(documents) if pod.labels and selects(selector, pod.labels)]


def _ports(pod: Pod) -> list[dict[str, Any]]:
    return [
        {"name": port.get("name"), "number": port.get("containerPort")}
        for container in pod.containers
        for port in container.spec.get("ports", [])
    ]


def _of_kind(documents: Sequence[Document], kind: str) -> list[Document]:
    return [document for document in documents if document.get("kind") == kind]


RULES: dict[str, Rule] = {
    "selectors": _selectors,
    "service-ports": _service_ports,
    "network-policies": _policies,
    "closed-stores": _closed_stores,
}
