"""What KServe's real controller made of our manifests, beside what our model of it makes.

The records lie beside some checkouts and are no part of this one. They were made with the manifests
of one day: where a manifest has changed since, the comparison shows that as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.packaging.manifests import RUNTIMES, documents, example, kustomize, load
from tests.packaging.pods import Document
from tests.support.cluster.controller import objects

RECORDS = Path(__file__).resolve().parents[3] / "shared" / "kserve"
# Of a kind of objects that this package only reads, and has no manifest for.
OTHER_KINDS = {"llminferenceservice"}
# Services that were made for the record; it holds them itself.
OF_ITS_OWN = {"model-oci": "t-oci"}
# Records whose name is not that of what was applied: that, and the namespace.
_OTHER_NAMES = {"canary-standard": ("example-canary-standard", "t-can")}
# A component of the record and what was applied with it.
_WITH = {"preflight": ["redis", "preflight"]}
# How the items of a list are told apart. Lists of other items have an order.
_KEYS = {
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "ports": "port",
    "canary": "trafficPercent",
    "containers": "name",
    "initContainers": "name",
}
_ORDERED = ("initContainers",)  # their order counts, too
_ABSENT, _PRESENT = "absent", "present"


@dataclass(frozen=True)
class Difference:
    """A value that is not the same in the record and in our model.

    Attributes:
        record: the record's name.
        path: the object and the way to the value in it.
        ours: the model's value, or that it has none.
        theirs: the record's value, or that it has none.
    """

    record: str
    path: str
    ours: Any
    theirs: Any


def names() -> list[str]:
    """The records that our model can be compared with."""
    found = {path.stem for path in RECORDS.glob("*.json")} - OTHER_KINDS
    return sorted(found)


def recorded(name: str) -> list[Document]:
    """The objects of a record."""
    found: list[Document] = json.loads((RECORDS / f"{name}.json").read_text())
    return found


def modelled(name: str) -> list[Document]:
    """The objects that our model makes of what was applied for a record."""
    if name in OF_ITS_OWN:
        (service,) = (each for each in recorded(name) if each["kind"] == "InferenceService")
        return objects([*documents("runtimes"), service], OF_ITS_OWN[name])
    applied, namespace = _OTHER_NAMES.get(name, (name, f"t-{name}"))
    return objects(_applied(applied), namespace)


def differences(name: str) -> Iterator[Difference]:
    """Every value that differs, of every object of a record."""
    yield from compare(name, modelled(name), recorded(name))


def compare(
    name: str, of_model: Sequence[Document], of_record: Sequence[Document]
) -> Iterator[Difference]:
    """Every value that differs, and every object that one of the two lacks."""
    ours, theirs = (
        {_identity(each): dict(_flat("", each)) for each in found}
        for found in (of_model, of_record)
    )
    for own in sorted(ours.keys() | theirs.keys()):
        if own not in ours or own not in theirs:
            there = [_PRESENT if own in found else _ABSENT for found in (ours, theirs)]
            yield Difference(name, own, *there)
            continue
        for path in sorted(ours[own].keys() | theirs[own].keys()):
            pair = ours[own].get(path, _ABSENT), theirs[own].get(path, _ABSENT)
            if pair[0] != pair[1]:
                yield Difference(name, own + path, *pair)


def _applied(name: str) -> list[Document]:
    kind, _, rest = name.partition("-")
    if kind == "component":
        parts = _WITH.get(rest, [rest])
        return load(kustomize([RUNTIMES / "base", example("pvc")], parts))
    return documents("guide" if rest == "guide" else f"{kind} {rest}")


def _identity(document: Document) -> str:
    """The name of an object; pods of Deployments have none that lasts."""
    metadata = document["metadata"]
    labels = metadata.get("labels", {})
    own = labels.get("statefulset.kubernetes.io/pod-name") or labels.get("app")
    return f"{document['kind']}/{metadata.get('name') or own}"


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Each value of a document with the way to it; empty values are as good as none."""
    last = re.sub(r"\[.*", "", path.rpartition(".")[2])
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{path}.{key}", inner)
    elif isinstance(value, list) and last in _KEYS and all(isinstance(x, dict) for x in value):
        key = _KEYS[last]
        told = [str(item.get(key, item.get("containerPort"))) for item in value]
        if last in _ORDERED:
            yield f"{path}.order", told
        for name, item in zip(told, value, strict=True):
            yield from _flat(f"{path}[{name}]", item)
    elif value not in (None, [], ""):
        yield path, value
