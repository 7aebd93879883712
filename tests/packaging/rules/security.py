"""The *restricted* pod security standard, and a root file system that nobody writes to.

https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tests.packaging.pods import Container, Document, Pod, all_pods
from tests.packaging.rules.fault import Fault, Rule

_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def _restricted(documents: Sequence[Document]) -> Iterator[Fault]:
    for pod in all_pods(documents):
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.spec.get(field):
                yield pod.owner, f"shares the node's namespaces ({field})"
        for volume in pod.spec.get("volumes", []):
            kinds = set(volume) - {"name"}
            if kinds - _VOLUMES:
                yield pod.owner, f"has a volume of {', '.join(sorted(kinds))}"
        for container, context in _contexts(pod):
            for fault in _weaknesses(context):
                yield container.where, fault
            if any("hostPort" in port for port in container.spec.get("ports", [])):
                yield container.where, "opens a port of the node (hostPort)"


def _read_only_root(documents: Sequence[Document]) -> Iterator[Fault]:
    for pod in all_pods(documents):
        for container, context in _contexts(pod):
            if context.get("readOnlyRootFilesystem") is not True:
                yield container.where, "may write into its image (readOnlyRootFilesystem)"


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


def _contexts(pod: Pod) -> Iterator[tuple[Container, dict[str, Any]]]:
    """Each container with what holds for it; one without a word of its own has its runtime's."""
    for container in pod.containers:
        own = container.spec.get("securityContext", {})
        if own or not container.inherits:
            yield container, {**pod.spec.get("securityContext", {}), **own}


RULES: dict[str, Rule] = {"restricted": _restricted, "read-only-root": _read_only_root}
