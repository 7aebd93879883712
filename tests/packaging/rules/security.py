"""The *restricted* pod security standard, and a root file system that nobody writes to.

https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tests.packaging.pods import LLM_CONFIG, Container, Document, Pod, all_pods, label
from tests.packaging.rules.fault import Fault, Rule

_MODE = "serving.kserve.io/deploymentMode"
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
            for fault in weaknesses(context):
                yield container.where, fault
            if any("hostPort" in port for port in container.spec.get("ports", [])):
                yield container.where, "opens a port of the node (hostPort)"


def _read_only_root(documents: Sequence[Document]) -> Iterator[Fault]:
    for pod in all_pods(documents):
        if pod.owner.startswith(f"{LLM_CONFIG}/"):
            continue  # in KServe's preset NVIDIA's hook writes to the root file system
        for container, context in _contexts(pod):
            if context.get("readOnlyRootFilesystem") is not True:
                yield container.where, "may write into its image (readOnlyRootFilesystem)"


def weaknesses(context: dict[str, Any]) -> Iterator[str]:
    """What the standard misses in a container's securityContext, laid over its pod's."""
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


def _pod_seccomp(documents: Sequence[Document]) -> Iterator[Fault]:
    """KServe's own init container has no seccomp profile; the pod's holds for it as well."""
    for document in documents:
        if document.get("kind") != "InferenceService":
            continue
        mode = document["metadata"].get("annotations", {}).get(_MODE)
        predictors = [document["spec"]["predictor"]]
        predictors += [each["predictor"] for each in document["spec"].get("canary", [])]
        for predictor in predictors:
            context = predictor.get("securityContext", {})
            if mode == "Serverless":
                if context:
                    yield label(document), "has a securityContext, which Knative refuses"
            elif context.get("seccompProfile") != {"type": "RuntimeDefault"}:
                yield label(document), "has no predictor.securityContext.seccompProfile"
            elif mode is None:
                message = f"names no {_MODE}: a serverless one may have no securityContext"
                yield label(document), message


RULES: dict[str, Rule] = {
    "restricted": _restricted,
    "read-only-root": _read_only_root,
    "pod-seccomp": _pod_seccomp,
}
