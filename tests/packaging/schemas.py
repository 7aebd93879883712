"""Validates documents against the schemas of Kubernetes and of KServe's own kinds."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from tests.packaging.pods import Document

# The oldest that KServe 0.15.1's documentation and tests name, what 0.21's tests run on, and the
# newest that there is a schema of.
KUBERNETES = ("1.30", "1.34", "1.37")

CORE = ("v1", "apps/", "networking.k8s.io/", "policy/", "autoscaling/", "rbac.")
KSERVE = "serving.kserve.io/"
# Of the operators that some components are for; no schema of them comes in a package.
OPERATORS = (
    "cert-manager.io/",
    "monitoring.coreos.com/",
    "inference.networking.k8s.io/",
    "gateway.networking.k8s.io/",
)


def core_errors(document: Document, version: str) -> list[str]:
    """What the API server of a Kubernetes version refuses in a document of its own kinds."""
    return _core_errors(json.dumps(document, sort_keys=True), version)


@functools.cache
def _core_errors(text: str, version: str) -> list[str]:
    try:
        kubernetes_validate.validate(json.loads(text), version, strict=True)
    except (
        kubernetes_validate.ValidationError,
        kubernetes_validate.SchemaNotFoundError,
    ) as error:
        return [f"{version}: {error.message}"]
    return []


class Crds:
    """The CRDs in some directories. They are too large to keep here.

    Args:
        directories: with files ``GROUP_PLURAL.yaml``, as in config/crd/full of KServe's repository.
    """

    def __init__(self, directories: Sequence[Path]) -> None:
        self._directories = directories

    def has(self, document: Document) -> bool:
        """Whether the CRD of a document is there."""
        return self._file(document) is not None

    def errors(self, document: Document) -> list[str]:
        """What its CRD refuses in a document, unknown fields included, each with its path."""
        path = self._file(document)
        assert path is not None, f"no directory of {self._directories} has the CRD"
        return _crd_errors(path, json.dumps(document, sort_keys=True))

    def _file(self, document: Document) -> Path | None:
        group = document["apiVersion"].partition("/")[0]
        name = f"{group}_{document['kind'].lower()}s.yaml"
        return next((path for each in self._directories if (path := each / name).is_file()), None)


@functools.cache
def _crd_errors(path: Path, text: str) -> list[str]:
    document = json.loads(text)
    validator = _validator(path, document["apiVersion"].partition("/")[2])
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def close(schema: Any) -> Any:
    """The schema refusing the fields it does not list, as the API server does when strict."""
    if isinstance(schema, list):
        return [close(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: close(value) for key, value in schema.items()}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields")
    # A field may itself be called "properties", and is then no keyword of the schema.
    if schema.get("type") == "object" and "properties" in schema and not open_ended:
        closed.setdefault("additionalProperties", False)
    return closed


@functools.cache
def _validator(path: Path, version: str) -> jsonschema.Draft7Validator:
    # The C loader: the largest CRD takes half a minute without it.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    crd = yaml.load(path.read_text(), Loader=loader)  # noqa: S506
    for served in crd["spec"]["versions"]:
        if served["name"] == version:
            return jsonschema.Draft7Validator(close(served["schema"]["openAPIV3Schema"]))
    raise AssertionError(f"{path.name} has no version {version}")
