"""Where each kind of document keeps its pod."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Document = dict[str, Any]

RUNTIME_KINDS = ("ClusterServingRuntime", "ServingRuntime")


def label(document: Document) -> str:
    """How to call a document, complete or not."""
    name = document.get("metadata", {}).get("name", "?")
    return f"{document.get('kind', '?')}/{name}"


def pods(document: Document) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """The labels and the specification of each pod that a document describes."""
    spec = document.get("spec", {})
    if document.get("kind") in RUNTIME_KINDS:
        yield {}, spec
    elif document.get("kind") == "InferenceService":
        yield {}, spec.get("predictor", {})
    elif "template" in spec:
        template = spec["template"]
        yield template.get("metadata", {}).get("labels", {}), template.get("spec", {})


def containers(document: Document) -> Iterator[tuple[str, dict[str, Any]]]:
    """The containers of a document's pods, each with how to call it.

    The ``model`` of an InferenceService is one: KServe lays it over its runtime's container.
    """
    for _, pod in pods(document):
        found = [*pod.get("initContainers", []), *pod.get("containers", [])]
        if "model" in pod:
            found.append({"name": "model", **pod["model"]})
        for container in found:
            yield f"{label(document)} {container.get('name', '?')}", container


def volumes(document: Document) -> list[dict[str, Any]]:
    """The volumes that a document's pods declare."""
    return [volume for _, pod in pods(document) for volume in pod.get("volumes", [])]
