"""What the API server writes into a document where its author wrote nothing.

https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/
"""

from __future__ import annotations

import copy
from typing import Any

Document = dict[str, Any]

_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
_PROBE = {"failureThreshold": 3, "periodSeconds": 10, "successThreshold": 1, "timeoutSeconds": 1}


def stored(document: Document) -> Document:
    """The document as the API server gives it back."""
    document = copy.deepcopy(document)
    spec = document.get("spec", {})
    match document["kind"]:
        case "Pod":
            _pod(spec)
            for container in [*spec.get("initContainers", []), *spec["containers"]]:
                _requests(container.get("resources", {}))
            account = spec.setdefault("serviceAccountName", "default")
            spec["serviceAccount"] = account
        case "Deployment":
            _fill(spec, progressDeadlineSeconds=600, revisionHistoryLimit=10)
            rolling = {"maxSurge": "25%", "maxUnavailable": "25%"}
            _fill(spec, strategy={"type": "RollingUpdate", "rollingUpdate": rolling})
            _pod(spec["template"]["spec"])
        case "StatefulSet":
            kept = {"whenDeleted": "Retain", "whenScaled": "Retain"}
            _fill(spec, revisionHistoryLimit=10, persistentVolumeClaimRetentionPolicy=kept)
            rolling = {"partition": 0}
            _fill(spec, updateStrategy={"type": "RollingUpdate", "rollingUpdate": rolling})
            _pod(spec["template"]["spec"])
        case "Service" if document["apiVersion"] == "v1":
            _fill(spec, type="ClusterIP")
        case "HorizontalPodAutoscaler":
            _autoscaler(spec)
    return document


def _pod(spec: dict[str, Any]) -> None:
    _fill(spec, restartPolicy="Always", securityContext={}, terminationGracePeriodSeconds=30)
    if "serviceAccountName" in spec:
        spec["serviceAccount"] = spec["serviceAccountName"]
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        _fill(container, imagePullPolicy="IfNotPresent", terminationMessagePolicy="File")
        for port in container.get("ports", []):
            _fill(port, protocol="TCP")
        for probe in (container[name] for name in _PROBES if name in container):
            _fill(probe, **_PROBE)
            if "httpGet" in probe:
                _fill(probe["httpGet"], scheme="HTTP")
        for source in (each.get("valueFrom", {}) for each in container.get("env", [])):
            if "fieldRef" in source:
                _fill(source["fieldRef"], apiVersion="v1")
            if "resourceFieldRef" in source:
                _fill(source["resourceFieldRef"], divisor="0")
    for volume in spec.get("volumes", []):
        for kind in ("configMap", "secret", "projected"):
            if kind in volume:
                _fill(volume[kind], defaultMode=420)


def _requests(resources: dict[str, Any]) -> None:
    """The limits of a pod's container are its requests; of a template's they are not yet."""
    if "limits" in resources:
        _fill(resources.setdefault("requests", {}), **resources["limits"])


def _autoscaler(spec: dict[str, Any]) -> None:
    pods = {"type": "Pods", "value": 4, "periodSeconds": 15}
    percent = {"type": "Percent", "value": 100, "periodSeconds": 15}
    behavior = spec.setdefault("behavior", {})
    up, down = behavior.setdefault("scaleUp", {}), behavior.setdefault("scaleDown", {})
    _fill(up, policies=[pods, percent], selectPolicy="Max", stabilizationWindowSeconds=0)
    _fill(down, policies=[percent], selectPolicy="Max")


def _fill(holder: dict[str, Any], **defaults: Any) -> None:
    for name, value in defaults.items():
        holder.setdefault(name, value)
