"""Where each kind of document keeps its pods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Document = dict[str, Any]

RUNTIME_KINDS = ("ClusterServingRuntime", "ServingRuntime")
# KServe lays the second over the first, and both over its own preset.
LLM_CONFIG, LLM_SERVICE = "LLMInferenceServiceConfig", "LLMInferenceService"


@dataclass(frozen=True)
class Container:
    """A container as it is written.

    Attributes:
        where: how to call it.
        inherits: whether KServe lays it over a container of its runtime.
    """

    where: str
    spec: dict[str, Any]
    inherits: bool = False


@dataclass(frozen=True)
class Pod:
    """A pod that a document describes.

    Attributes:
        owner: how to call its document.
        spec: its specification.
        inherits: whether KServe lays it over a pod of its runtime.
    """

    owner: str
    labels: dict[str, str]
    spec: dict[str, Any]
    inherits: bool = False

    @property
    def containers(self) -> list[Container]:
        """The ``model`` of an InferenceService is one."""
        found = [(each, False) for each in self.spec.get("initContainers", [])]
        found += [(each, self.inherits) for each in self.spec.get("containers", [])]
        if "model" in self.spec:
            found.append(({"name": "model", **self.spec["model"]}, True))
        return [
            Container(f"{self.owner} {each.get('name', '?')}", each, inherits)
            for each, inherits in found
        ]


def label(document: Document) -> str:
    """How to call a document, complete or not."""
    name = document.get("metadata", {}).get("name", "?")
    return f"{document.get('kind', '?')}/{name}"


def pods(document: Document) -> Iterator[Pod]:
    """Each pod that a document describes; a multi-node one has two."""
    spec = document.get("spec", {})
    owner = label(document)
    if document.get("kind") in RUNTIME_KINDS:
        yield Pod(owner, spec.get("labels", {}), spec)
        if "workerSpec" in spec:
            yield Pod(owner, spec["workerSpec"].get("labels", {}), spec["workerSpec"])
    elif document.get("kind") == "InferenceService":
        predictor = spec.get("predictor", {})
        yield Pod(owner, predictor.get("labels", {}), predictor, inherits=True)
        if "workerSpec" in predictor:
            yield Pod(owner, {}, predictor["workerSpec"], inherits=True)
    elif document.get("kind") in (LLM_CONFIG, LLM_SERVICE):
        inherits = document["kind"] == LLM_SERVICE
        yield Pod(owner, spec.get("labels", {}), spec.get("template", {}), inherits)
    elif "template" in spec:
        template = spec["template"]
        yield Pod(owner, template.get("metadata", {}).get("labels", {}), template.get("spec", {}))


def all_pods(documents: Sequence[Document]) -> Iterator[Pod]:
    """The pods of a set of documents."""
    for document in documents:
        yield from pods(document)


def all_containers(documents: Sequence[Document]) -> Iterator[Container]:
    """The containers of a set of documents."""
    for pod in all_pods(documents):
        yield from pod.containers
