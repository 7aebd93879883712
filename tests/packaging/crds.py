"""Validates a document against KServe's CustomResourceDefinitions."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.packaging.pods import Document

# KServe's CRDs are too large to keep here: config/crd/full of its repository, laid beside us.
FOLDER = Path(__file__).resolve().parents[3] / "shared" / "crds"


def errors(document: Document) -> list[str]:
    """What the schema refuses, unknown fields included, each with its path."""
    validator = jsonschema.Draft7Validator(_schema(document["kind"], document["apiVersion"]))
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
def _schema(kind: str, api_version: str) -> dict[str, Any]:
    group, _, version = api_version.partition("/")
    path = FOLDER / f"{group}_{kind.lower()}s.yaml"
    # The C loader: the largest CRD takes half a minute without it.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    crd = yaml.load(path.read_text(), Loader=loader)  # noqa: S506
    for served in crd["spec"]["versions"]:
        if served["name"] == version:
            closed: dict[str, Any] = close(served["schema"]["openAPIV3Schema"])
            return closed
    raise AssertionError(f"{path.name} has no version {version}")
