"""What manifests refer to by name, and what people are told to create beside them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.packaging.pods import Document, all_pods, label

# Every namespace has them.
BUILT_IN = {"ServiceAccount/default", "ConfigMap/kube-root-ca.crt"}
_CREATE = re.compile(r"kubectl create (?:.*\\\n)*.*")
_CLAIM = re.compile(r"PersistentVolumeClaim\s+(?:#\s*)?([a-z0-9-]+)")
# One object is named by several fields: what the field's value is named in, and what it names.
_NAMED = {
    "secretKeyRef": ("Secret", "name"),
    "secretRef": ("Secret", "name"),
    "secret": ("Secret", "name secretName"),
    "configMapKeyRef": ("ConfigMap", "name"),
    "configMapRef": ("ConfigMap", "name"),
    "configMap": ("ConfigMap", "name"),
    "persistentVolumeClaim": ("PersistentVolumeClaim", "claimName"),
    "imagePullSecrets": ("Secret", "name"),
}


def needed(documents: Sequence[Document]) -> dict[str, set[str]]:
    """What must be there for the documents to come to life, with the keys that are asked for."""
    found: dict[str, set[str]] = {}
    for name, keys in _references(documents):
        found.setdefault(name, set()).update(keys)
    there = {label(document) for document in documents} | _made(documents) | BUILT_IN
    return {name: keys for name, keys in found.items() if name not in there}


def created(text: str, directory: Path) -> list[Document]:
    """The objects that the commands in the comments of a manifest create.

    Args:
        text: the manifest.
        directory: has the files that the commands read.
    """
    # The commands of a comment, without its marks.
    plain = "\n".join(re.sub(r"^\s*#\s?", "", line) for line in text.splitlines())
    kubectl = Path(sys.executable).with_name("kubectl")
    found = []
    for command in _CREATE.findall(plain):
        line = f"{command} --dry-run=client --output=yaml".replace("kubectl", str(kubectl), 1)
        done = subprocess.run(
            ["bash", "-euc", line], capture_output=True, text=True, check=False, cwd=directory
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        found.append(yaml.safe_load(done.stdout))
    claims = re.findall(_CLAIM, plain)
    kind = "PersistentVolumeClaim"
    return found + [{"kind": kind, "metadata": {"name": name}} for name in claims]


def _made(documents: Sequence[Document]) -> set[str]:
    """The Secrets that cert-manager makes."""
    return {
        f"Secret/{document['spec']['secretName']}"
        for document in documents
        if document["kind"] == "Certificate"
    }


def _references(documents: Sequence[Document]) -> Iterator[tuple[str, set[str]]]:
    for pod in all_pods(documents):
        yield from _in(pod.spec)
        if account := pod.spec.get("serviceAccountName"):
            yield f"ServiceAccount/{account}", set()
        uri = pod.spec.get("model", {}).get("storageUri", "")
        if uri.startswith("pvc://"):
            yield f"PersistentVolumeClaim/{uri.removeprefix('pvc://').split('/')[0]}", set()
    for document in documents:
        spec = document.get("spec", {})
        for claim in spec.get("volumeClaimTemplates", []):
            if storage := claim["spec"].get("storageClassName"):
                yield f"StorageClass/{storage}", set()
        if document["kind"] == "ServiceAccount":
            for secret in document.get("secrets", []):
                yield f"Secret/{secret['name']}", set()
        if document["kind"] in ("Issuer", "ClusterIssuer") and "ca" in spec:
            yield f"Secret/{spec['ca']['secretName']}", set()
        if document["kind"] == "Certificate":
            yield f"{spec['issuerRef']['kind']}/{spec['issuerRef']['name']}", set()


def _in(value: Any) -> Iterator[tuple[str, set[str]]]:
    """The references below a pod's specification; optional ones are none."""
    if isinstance(value, list):
        for each in value:
            yield from _in(each)
    if not isinstance(value, dict):
        return
    for field, inner in value.items():
        kind, keys = _NAMED.get(field, ("", ""))
        for each in (inner if isinstance(inner, list) else [inner]) if kind else []:
            names = [each[key] for key in keys.split() if isinstance(each, dict) and key in each]
            if names and not each.get("optional"):
                asked = {item["key"] for item in each.get("items", [])}
                yield f"{kind}/{names[0]}", asked | ({each["key"]} if "key" in each else set())
        yield from _in(inner)
