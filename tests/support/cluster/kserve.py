"""What KServe's controller and webhook make of a service and its runtime.

Of the controller: the runtime's pod under the service's, args one after the other, placeholders,
the variables of many nodes. Of the webhook: the volume that the model is downloaded to.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from typing import Any

from tests.support.cluster.strategic_merge import merge

Document = dict[str, Any]
PodSpec = dict[str, Any]

MODELS = "/mnt/models"
MODEL_VOLUME = "kserve-provision-location"
_PLACEHOLDER = re.compile(r"\{\{\s*\.(\w+)(?:\.(\w+))?\s*\}\}")
_NOT_OF_THE_POD = {
    *("minReplicas", "maxReplicas", "model", "workerSpec", "autoScaling", "scaleMetric"),
    *("scaleTarget", "canaryTrafficPercent", "labels", "annotations"),
}


def choose(runtimes: Sequence[Document], service: Document) -> Document:
    """The runtime that serves a service: the one it names, else one that is selected for it."""
    predictor = service["spec"]["predictor"]
    model = predictor["model"]
    found = [
        runtime
        for runtime in runtimes
        if (
            runtime["metadata"]["name"] == model["runtime"]
            if "runtime" in model
            else ("workerSpec" in runtime["spec"]) == ("workerSpec" in predictor)
            and any(
                entry["autoSelect"] and entry["name"] == model["modelFormat"]["name"]
                for entry in runtime["spec"]["supportedModelFormats"]
            )
        )
    ]
    assert len(found) == 1, f"{len(found)} runtimes for {service['metadata']['name']}"
    return found[0]


def predictor(runtime: Document, service: Document) -> PodSpec:
    """The pod of a service's replica; for many nodes, of its head."""
    spec, own = runtime["spec"], service["spec"]["predictor"]
    model = {
        name: value
        for name, value in own["model"].items()
        if name not in ("modelFormat", "runtime", "storageUri", "protocolVersion")
    }
    container = _container(spec, "kserve-container", model, service)
    pod = _pod(spec, own, container)
    if "workerSpec" in own:
        sizes = _sizes(runtime, service)
        container["env"] += [*sizes, _variable("MODEL_NAME", service["metadata"]["name"])]
    if "storageUri" in own["model"]:
        _provide_model(pod, container)
    return pod


def worker(runtime: Document, service: Document, head_service: str) -> PodSpec:
    """The pod of a worker of a service on many nodes."""
    spec, own = runtime["spec"]["workerSpec"], service["spec"]["predictor"]["workerSpec"]
    patch = next(iter(own.get("containers", [])), {})
    container = _container(spec, "worker-container", patch, service)
    pod = _pod(spec, {key: value for key, value in own.items() if "Size" not in key}, container)
    container["env"] += [*_sizes(runtime, service), _variable("HEAD_SVC", head_service)]
    _provide_model(pod, container)
    return pod


def _container(
    spec: PodSpec, name: str, patch: dict[str, Any], service: Document
) -> dict[str, Any]:
    (base,) = (each for each in spec["containers"] if each["name"] == name)
    container: dict[str, Any] = merge(base, {**patch, "name": name})
    container["args"] = [*base.get("args", []), *patch.get("args", [])]
    container = _fill(container, service["metadata"])
    container.setdefault("env", []).append(
        _variable("INFERENCE_SERVICE_NAME", service["metadata"]["name"])
    )
    return container


def _pod(spec: PodSpec, own: PodSpec, container: dict[str, Any]) -> PodSpec:
    base = {key: spec[key] for key in ("volumes", "affinity", "imagePullSecrets") if key in spec}
    patch = {key: value for key, value in own.items() if key not in _NOT_OF_THE_POD}
    return {**merge(base, patch), "containers": [container]}


def _fill(container: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any]:
    """The placeholders replaced, as Go's html/template does it."""

    def value(match: re.Match[str]) -> str:
        field, key = match[1].lower(), match[2]
        found = metadata[field][key] if key else metadata[field]
        return html.escape(str(found))

    filled: dict[str, Any] = json.loads(_PLACEHOLDER.sub(value, json.dumps(container)))
    return filled


def _sizes(runtime: Document, service: Document) -> list[dict[str, str]]:
    of_runtime = runtime["spec"]["workerSpec"]
    own = service["spec"]["predictor"]["workerSpec"]
    return [
        _variable(name, str(own.get(field, of_runtime.get(field, 1))))
        for name, field in (
            ("TENSOR_PARALLEL_SIZE", "tensorParallelSize"),
            ("PIPELINE_PARALLEL_SIZE", "pipelineParallelSize"),
        )
    ]


def _provide_model(pod: PodSpec, container: dict[str, Any]) -> None:
    pod.setdefault("volumes", []).append({"name": MODEL_VOLUME, "emptyDir": {}})
    mount = {"name": MODEL_VOLUME, "mountPath": MODELS, "readOnly": True}
    container.setdefault("volumeMounts", []).append(mount)


def _variable(name: str, value: str) -> dict[str, str]:
    return {"name": name, "value": value}
