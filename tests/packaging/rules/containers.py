"""Rules about what stands in a container."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from tests.packaging.pods import RUNTIME_KINDS, Document, all_containers, all_pods, pods
from tests.packaging.rules.fault import Fault, Rule

_NATIVE_RESOURCES = re.compile(r"cpu|memory|ephemeral-storage|hugepages-.+")
_EXTENDED_RESOURCE = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+/[A-Za-z0-9._-]+")
_QUOTED_VALUE = re.compile(r"(?:--?[\w.-]+=)?(['\"]).*\1", re.DOTALL)
_MOVING_TAGS = {"", "latest", "replace"}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def _quoted_arguments(documents: Sequence[Document]) -> Iterator[Fault]:
    for container in all_containers(documents):
        for argument in _words(container.spec):
            if isinstance(argument, str) and _QUOTED_VALUE.fullmatch(argument):
                yield container.where, f"keeps literal quotes in {argument}"


def _strings(documents: Sequence[Document]) -> Iterator[Fault]:
    for container in all_containers(documents):
        values = [variable.get("value", "") for variable in container.spec.get("env", [])]
        for word in (*_words(container.spec), *values):
            if not isinstance(word, str):
                yield container.where, f"has {word!r} where a string must stand"


def _resource_names(documents: Sequence[Document]) -> Iterator[Fault]:
    for container in all_containers(documents):
        resources = container.spec.get("resources", {})
        for name in {*resources.get("limits", {}), *resources.get("requests", {})}:
            if not (_NATIVE_RESOURCES.fullmatch(name) or _EXTENDED_RESOURCE.fullmatch(name)):
                yield container.where, f"asks for {name}, which is no resource: DOMAIN/NAME"


def _memory_limit(documents: Sequence[Document]) -> Iterator[Fault]:
    for container in all_containers(documents):
        limits = container.spec.get("resources", {}).get("limits", {})
        if "memory" not in limits and not container.inherits:
            yield container.where, "has no memory limit: it grows until the node is full"


def _images(documents: Sequence[Document]) -> Iterator[Fault]:
    for container in all_containers(documents):
        image = container.spec.get("image")
        # A registry's port has a colon as well, before the last slash.
        if image and "@" not in image:
            tag = image.rpartition("/")[2].partition(":")[2]
            if tag in _MOVING_TAGS:
                yield container.where, f"uses {image}, which names no fixed version"


def _mounts(documents: Sequence[Document]) -> Iterator[Fault]:
    # A service's containers may mount what its runtime declares.
    of_runtimes = {
        volume["name"]
        for document in documents
        if document.get("kind") in RUNTIME_KINDS
        for pod in pods(document)
        for volume in pod.spec.get("volumes", [])
    }
    for pod in all_pods(documents):
        declared = {volume["name"] for volume in pod.spec.get("volumes", [])}
        for container in pod.containers:
            for mount in container.spec.get("volumeMounts", []):
                if mount["name"] not in declared | (of_runtimes if pod.inherits else set()):
                    yield container.where, f"mounts {mount['name']}, which its pod does not declare"


def _probe_ports(documents: Sequence[Document]) -> Iterator[Fault]:
    for container in all_containers(documents):
        ports = container.spec.get("ports", [])
        known = {port.get("containerPort") for port in ports} | {port.get("name") for port in ports}
        for probe in PROBES:
            for action in container.spec.get(probe, {}).values():
                if isinstance(action, dict) and "port" in action and action["port"] not in known:
                    port = action["port"]
                    yield container.where, f"has a {probe} on port {port}, which it does not open"


def _words(container: dict[str, Any]) -> list[Any]:
    return [*container.get("command", []), *container.get("args", [])]


RULES: dict[str, Rule] = {
    "quoted-arguments": _quoted_arguments,
    "strings": _strings,
    "resource-names": _resource_names,
    "memory-limit": _memory_limit,
    "images": _images,
    "mounts": _mounts,
    "probe-ports": _probe_ports,
}
