"""Validates documents against the schemas of Kubernetes and of KServe's own kinds."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from tests.packaging.pods import Document

# KServe's CRDs are too large to keep here: config/crd/full of its repository, laid beside us.
CRDS = Path(__file__).resolve().parents[3] / "shared" / "crds"

# The oldest that KServe 0.15.1's documentation and tests name, what 0.21's tests run on, and the
# newest that there is a schema of.
KUBERNETES = ("1.30", "1.34", "1.37")

CORE = ("v1", "apps/", "networking.k8s.io/", "policy/", "autoscaling/", "rbac.")
KSERVE = "serving.kserve.io/"
# Of the operators that some components are for; no schema of them comes in a package.
OPERATORS = ("cert-manager.io/", "monitoring.coreos.com/")


def has_crd(document: Document) -> bool:
    """Whether the CRD of a document lies beside this checkout."""
    return _crd(document["kind"], document["apiVersion"]).is_file()


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


def kserve_errors(document: Document) -> list[str]:
    """What KServe's CRD refuses, unknown fields included, each with its path."""
    return _kserve_errors(json.dumps(document, sort_keys=True))


@functools.cache
def _kserve_errors(text: str) -> list[str]:
    document = json.loads(text)
    validator = _validator(document["kind"], document["apiVersion"])
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


def _crd(kind: str, api_version: str) -> Path:
    return CRDS / f"{api_version.partition('/')[0]}_{kind.lower()}s.yaml"


@functools.cache
def _validator(kind: str, api_version: str) -> jsonschema.Draft7Validator:
    version = api_version.partition("/")[2]
    path = _crd(kind, api_version)
    # The C loader: the largest CRD takes half a minute without it.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    crd = yaml.load(path.read_text(), Loader=loader)  # noqa: S506
    for served in crd["spec"]["versions"]:
        if served["name"] == version:
            return jsonschema.Draft7Validator(close(served["schema"]["openAPIV3Schema"]))
    raise AssertionError(f"{path.name} has no version {version}")
