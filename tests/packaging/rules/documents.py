"""Rules about documents and what they refer to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from tests.packaging.pods import Document, Pod, all_pods, label
from tests.packaging.rules.fault import Fault, Rule


def _identity(documents: Sequence[Document]) -> Iterator[Fault]:
    for document in documents:
        for field in ("apiVersion", "kind"):
            if not document.get(field):
                yield label(document), f"has no {field}"
        if not document.get("metadata", {}).get("name"):
            yield label(document), "has no metadata.name"


def _twice(documents: Sequence[Document]) -> Iterator[Fault]:
    for name, times in Counter(label(document) for document in documents).items():
        if times > 1:
            yield name, f"stands there {times} times"


def _config_maps(documents: Sequence[Document]) -> Iterator[Fault]:
    created = {label(d) for d in documents if d.get("kind") == "ConfigMap"}
    for pod in all_pods(documents):
        for reference in _references(pod):
            name = f"ConfigMap/{reference.get('name')}"
            if not reference.get("optional") and name not in created:
                yield pod.owner, f"needs the ConfigMap {reference.get('name')}"


def _secret_values(documents: Sequence[Document]) -> Iterator[Fault]:
    for document in documents:
        if document.get("kind") == "Secret" and (document.get("data") or document["stringData"]):
            yield label(document), "holds values, which whoever copies it would share"


def _references(pod: Pod) -> Iterator[dict[str, Any]]:
    """The ConfigMaps that a pod refers to."""
    found = []
    for volume in pod.spec.get("volumes", []):
        found.append(volume.get("configMap"))
        for source in volume.get("projected", {}).get("sources", []):
            found.append(source.get("configMap"))
    for container in pod.containers:
        for source in container.spec.get("envFrom", []):
            found.append(source.get("configMapRef"))
        for variable in container.spec.get("env", []):
            found.append(variable.get("valueFrom", {}).get("configMapKeyRef"))
    yield from filter(None, found)


RULES: dict[str, Rule] = {
    "identity": _identity,
    "twice": _twice,
    "config-maps": _config_maps,
    "secret-values": _secret_values,
}
