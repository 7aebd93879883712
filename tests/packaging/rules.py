"""What a schema cannot see in a set of manifests.

The API server, or KServe's controller, accepts every fault named here and then fails later,
elsewhere or silently. A rule takes the whole set, since documents refer to each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tests.packaging.pods import (
    RUNTIME_KINDS,
    Document,
    containers,
    label,
    pods,
    volumes,
)

# A finding without its rule's name: the document (and container) and the fault.
Fault = tuple[str, str]
Rule = Callable[[Sequence[Document]], Iterator[Fault]]

_PROTOCOLS = {"v1", "v2"}
_NATIVE_RESOURCES = re.compile(r"cpu|memory|ephemeral-storage|hugepages-.+")
_EXTENDED_RESOURCE = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+/[A-Za-z0-9._-]+")
_QUOTED_VALUE = re.compile(r"(?:--?[\w.-]+=)?(['\"]).*\1", re.DOTALL)
_PLACEHOLDER = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_KSERVE_FIELD = re.compile(r"\.(Name|Namespace|(Labels|Annotations)\.\w+)")
_MOVING_TAGS = {"", "latest", "replace"}
_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


@dataclass(frozen=True)
class Finding:
    """One fault, by the name of the rule that found it."""

    rule: str
    where: str
    message: str


def check(documents: Sequence[Document]) -> list[Finding]:
    """Every fault of a set of documents that are applied together."""
    return [
        Finding(name, where, message)
        for name, rule in RULES.items()
        for where, message in rule(documents)
    ]


def _identity(documents: Sequence[Document]) -> Iterator[Fault]:
    for document in documents:
        for field in ("apiVersion", "kind"):
            if not document.get(field):
                yield label(document), f"has no {field}"
        if not document.get("metadata", {}).get("name"):
            yield label(document), "has no metadata.name"


def _container_name(documents: Sequence[Document]) -> Iterator[Fault]:
    for document in documents:
        if document.get("kind") in RUNTIME_KINDS:
            names = [container.get("name") for _, container in containers(document)]
            if "kserve-container" not in names:
                yield label(document), f"has containers {names}, none of them kserve-container"


def _protocols(documents: Sequence[Document]) -> Iterator[Fault]:
    for document in documents:
        if document.get("kind") in RUNTIME_KINDS:
            missing = _PROTOCOLS - set(document["spec"].get("protocolVersions", []))
            if missing:
                yield label(document), f"lacks the protocol versions {sorted(missing)}"


def _storage(documents: Sequence[Document]) -> Iterator[Fault]:
    for document in documents:
        model = document.get("spec", {}).get("predictor", {}).get("model")
        if model and not (model.get("storageUri") or model.get("storage")):
            name = model.get("modelFormat", {}).get("name")
            if name != "huggingface":
                yield label(document), f"has no storageUri: multi-model for the format {name}"


def _quoted_arguments(documents: Sequence[Document]) -> Iterator[Fault]:
    for where, container in _all_containers(documents):
        for argument in _words(container):
            if isinstance(argument, str) and _QUOTED_VALUE.fullmatch(argument):
                yield where, f"keeps literal quotes in {argument}"


def _strings(documents: Sequence[Document]) -> Iterator[Fault]:
    for where, container in _all_containers(documents):
        values = [variable.get("value", "") for variable in container.get("env", [])]
        for word in (*_words(container), *values):
            if not isinstance(word, str):
                yield where, f"has {word!r} where a string must stand"


def _placeholders(documents: Sequence[Document]) -> Iterator[Fault]:
    for document in documents:
        if document.get("kind") in RUNTIME_KINDS:
            for where, container in containers(document):
                for field in _PLACEHOLDER.findall(str(container)):
                    if not _KSERVE_FIELD.fullmatch(field.strip()):
                        yield where, f"has a placeholder that KServe cannot fill: {field}"


def _resource_names(documents: Sequence[Document]) -> Iterator[Fault]:
    for where, container in _all_containers(documents):
        resources = container.get("resources", {})
        for name in {*resources.get("limits", {}), *resources.get("requests", {})}:
            if not (_NATIVE_RESOURCES.fullmatch(name) or _EXTENDED_RESOURCE.fullmatch(name)):
                yield where, f"asks for {name}, which is no resource: DOMAIN/NAME"


def _python_path(documents: Sequence[Document]) -> Iterator[Fault]:
    for where, container in _all_containers(documents):
        if any(variable.get("name") == "PYTHONPATH" for variable in container.get("env", [])):
            yield where, "sets PYTHONPATH, which KServe's webhook refuses"


def _images(documents: Sequence[Document]) -> Iterator[Fault]:
    for where, container in _all_containers(documents):
        image = container.get("image")
        # A registry's port has a colon as well, before the last slash.
        if image and "@" not in image:
            tag = image.rpartition("/")[2].partition(":")[2]
            if tag in _MOVING_TAGS:
                yield where, f"uses {image}, which names no fixed version"


def _mounts(documents: Sequence[Document]) -> Iterator[Fault]:
    for document in documents:
        declared = {volume["name"] for volume in volumes(document)}
        for where, container in containers(document):
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in declared:
                    yield where, f"mounts {mount['name']}, which its pod does not declare"


def _config_maps(documents: Sequence[Document]) -> Iterator[Fault]:
    created = {label(d) for d in documents if d.get("kind") == "ConfigMap"}
    for document in documents:
        references = [volume.get("configMap") for volume in volumes(document)]
        for _, container in containers(document):
            references += [source.get("configMapRef") for source in container.get("envFrom", [])]
            for variable in container.get("env", []):
                references.append(variable.get("valueFrom", {}).get("configMapKeyRef"))
        for reference in filter(None, references):
            if (
                not reference.get("optional")
                and f"ConfigMap/{reference.get('name')}" not in created
            ):
                yield label(document), f"needs the ConfigMap {reference.get('name')}"


def _probe_ports(documents: Sequence[Document]) -> Iterator[Fault]:
    for where, container in _all_containers(documents):
        ports = container.get("ports", [])
        known = {port.get("containerPort") for port in ports} | {port.get("name") for port in ports}
        for probe in _PROBES:
            for action in container.get(probe, {}).values():
                if isinstance(action, dict) and "port" in action and action["port"] not in known:
                    yield where, f"has a {probe} on port {action['port']}, which it does not open"


def _selectors(documents: Sequence[Document]) -> Iterator[Fault]:
    labels = [pod_labels for document in documents for pod_labels, _ in pods(document)]
    for document in documents:
        if document.get("kind") == "Service":
            wanted = document["spec"].get("selector", {})
            if not any(wanted.items() <= found.items() for found in labels):
                yield label(document), f"selects {wanted}, which no pod template carries"


def _restricted(documents: Sequence[Document]) -> Iterator[Fault]:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted"""
    for document in documents:
        # KServe lays a service's model over the container of its runtime.
        inherits = document.get("kind") == "InferenceService"
        for pod_context, container_pairs in _security_contexts(document):
            for where, own in container_pairs:
                context = {**pod_context, **own}
                if inherits and not own:
                    continue
                for fault in _weaknesses(context):
                    yield where, fault


def _weaknesses(context: dict[str, Any]) -> Iterator[str]:
    capabilities = context.get("capabilities", {})
    if context.get("runAsNonRoot") is not True:
        yield "may run as root (runAsNonRoot)"
    if context.get("runAsUser") == 0:
        yield "runs as root (runAsUser)"
    if context.get("privileged"):
        yield "is privileged"
    if context.get("allowPrivilegeEscalation") is not False:
        yield "may gain privileges (allowPrivilegeEscalation)"
    if capabilities.get("drop") != ["ALL"]:
        yield "does not drop all capabilities"
    if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield "adds capabilities"
    if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "has no seccomp profile"


def _security_contexts(
    document: Document,
) -> Iterator[tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]]:
    for _, pod in pods(document):
        pairs = [
            (where, container.get("securityContext", {}))
            for where, container in containers(document)
        ]
        yield pod.get("securityContext", {}), pairs


def _all_containers(documents: Sequence[Document]) -> Iterator[tuple[str, dict[str, Any]]]:
    for document in documents:
        yield from containers(document)


def _words(container: dict[str, Any]) -> list[Any]:
    return [*container.get("command", []), *container.get("args", [])]


RULES: dict[str, Rule] = {
    "identity": _identity,
    "container-name": _container_name,
    "protocols": _protocols,
    "storage": _storage,
    "quoted-arguments": _quoted_arguments,
    "strings": _strings,
    "placeholders": _placeholders,
    "resource-names": _resource_names,
    "python-path": _python_path,
    "images": _images,
    "mounts": _mounts,
    "config-maps": _config_maps,
    "probe-ports": _probe_ports,
    "selectors": _selectors,
    "restricted": _restricted,
}
