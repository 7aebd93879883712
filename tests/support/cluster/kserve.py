"""What KServe's controller and webhook make of a service and its runtime.

Of the controller: the runtime's pod under the service's, args one after the other, placeholders,
the variables of many nodes. Of the webhook: where the model comes from. The module ``controller``
has the objects around the pods.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tests.support.cluster.strategic_merge import merge

Document = dict[str, Any]
PodSpec = dict[str, Any]

MODELS = "/mnt/models"
MODEL_VOLUME = "kserve-provision-location"
CLAIM_VOLUME = "kserve-pvc-source"
# Of an oci:// model: who links its files into the volume, and who may read them there.
SIDECAR = "modelcar"
SIDECAR_USER = 1010
# KServe's own chart leaves this name in its configuration where nobody replaces it.
INITIALIZER_IMAGE = "default-storage-initilizer:replace"
# Its securityContext by the defaults of KServe's Helm chart and of its kustomizations.
OF_HELM = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "privileged": False,
    "runAsNonRoot": True,
}
OF_KUSTOMIZE: dict[str, Any] = {}
GENERATION = "1"
_PLACEHOLDER = re.compile(r"\{\{\s*\.(\w+)(?:\.(\w+))?\s*\}\}")
_NOT_OF_THE_POD = {
    *("minReplicas", "maxReplicas", "model", "workerSpec", "autoScaling", "scaleMetric"),
    *("scaleTarget", "canaryTrafficPercent", "labels", "annotations", "name"),
}
_NOT_OF_THE_CONTAINER = ("modelFormat", "runtime", "storageUri", "protocolVersion")


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
    # A ServingRuntime of the namespace comes before one of the cluster.
    found = [each for each in found if each["kind"] == "ServingRuntime"] or found
    assert len(found) == 1, f"{len(found)} runtimes for {service['metadata']['name']}"
    return found[0]


def predictor(
    runtime: Document,
    service: Document,
    account: Mapping[str, Any] | None = None,
    initializer: Mapping[str, Any] = OF_KUSTOMIZE,
) -> PodSpec:
    """The pod of a service's replica; for many nodes, of its head.

    Args:
        account: the service's ServiceAccount, whose Secret has the hub's token.
        initializer: the securityContext of the container that downloads the model.
    """
    pod = template(runtime, service)
    if uri := storage_uri(service):
        provide_model(pod, uri, account, initializer)
    return pod


def worker(runtime: Document, service: Document) -> PodSpec:
    """The pod of a worker of a service on many nodes."""
    pod = worker_template(runtime, service)
    if uri := storage_uri(service):
        provide_model(pod, uri, None)
    return pod


def storage_uri(service: Document) -> str | None:
    """Where the service's model comes from."""
    uri: str | None = service["spec"]["predictor"]["model"].get("storageUri")
    return uri


def template(runtime: Document, service: Document) -> PodSpec:
    """The pod of the Deployment, before the webhook sees it."""
    spec, own = runtime["spec"], service["spec"]["predictor"]
    model = {
        name: value for name, value in own["model"].items() if name not in _NOT_OF_THE_CONTAINER
    }
    container = _container(spec, "kserve-container", model, service)
    name = service["metadata"]["name"]
    container.setdefault("env", []).append(_variable("INFERENCE_SERVICE_NAME", name))
    if "workerSpec" in own:
        container["env"] += [
            *_sizes(runtime, service, container),
            _variable("MODEL_NAME", name),
            _variable("MODEL_DIR", MODELS),
        ]
    return _pod(spec, own, container)


def worker_template(runtime: Document, service: Document) -> PodSpec:
    """The pod of the workers' Deployment, before the webhook sees it."""
    spec, own = runtime["spec"]["workerSpec"], service["spec"]["predictor"]["workerSpec"]
    patch = next(iter(own.get("containers", [])), {})
    container = _container(spec, "worker-container", patch, service)
    container["env"] += [
        *_sizes(runtime, service, container),
        _variable("ISVC_NAME", service["metadata"]["name"]),
        _variable("HEAD_SVC", head_service(service)),
        _variable("WORKER_SVC", worker_service(service)),
    ]
    return _pod(spec, {key: value for key, value in own.items() if "Size" not in key}, container)


def head_service(service: Document) -> str:
    """The Service by which workers find their head."""
    return f"{service['metadata']['name']}-head-{GENERATION}"


def worker_service(service: Document) -> str:
    """The Service of the workers."""
    return f"{service['metadata']['name']}-workers-{GENERATION}"


def provide_model(
    pod: PodSpec,
    uri: str,
    account: Mapping[str, Any] | None,
    initializer: Mapping[str, Any] = OF_KUSTOMIZE,
) -> None:
    """The webhook's part: a claim's volume, a sidecar with the model's image, or a download."""
    (container,) = pod["containers"]
    kind, _, rest = uri.partition("://")
    if kind == "pvc":
        claim, _, path = rest.partition("/")
        _add(pod, "volumes", {"name": CLAIM_VOLUME, "persistentVolumeClaim": {"claimName": claim}})
        mount = {"name": CLAIM_VOLUME, "mountPath": MODELS, "subPath": path, "readOnly": True}
        _add(container, "volumeMounts", mount)
        return
    _add(pod, "volumes", {"name": MODEL_VOLUME, "emptyDir": {}})
    if kind == "oci":
        _add_sidecar(pod, container, rest)
        return
    mount = {"name": MODEL_VOLUME, "mountPath": MODELS}
    _add(container, "volumeMounts", {**mount, "readOnly": True})
    # The last: after what the service brings itself.
    downloads = _initializer(uri, mount, account)
    if initializer:
        downloads["securityContext"] = dict(initializer)
    _add(pod, "initContainers", downloads)


def _initializer(
    uri: str, mount: dict[str, Any], account: Mapping[str, Any] | None
) -> dict[str, Any]:
    tuning = {
        "HF_HUB_ENABLE_HF_TRANSFER": "1",
        "HF_XET_HIGH_PERFORMANCE": "1",
        "HF_XET_NUM_CONCURRENT_RANGE_GETS": "8",
    }
    env: list[dict[str, Any]] = []
    if uri.startswith("hf://"):
        for secret in (account or {}).get("secrets", []):
            reference = {"name": secret["name"], "key": "HF_TOKEN"}
            env.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": reference}})
        env += [_variable(name, value) for name, value in tuning.items()]
    return {
        "name": "storage-initializer",
        "image": INITIALIZER_IMAGE,
        "args": [uri, MODELS],
        "env": env,
        "resources": {
            "requests": {"cpu": "100m", "memory": "100Mi"},
            "limits": {"cpu": "1", "memory": "1Gi"},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [mount],
    }


def _add_sidecar(pod: PodSpec, container: dict[str, Any], image: str) -> None:
    """A sidecar with the model's image, whose files this pod sees through /proc."""
    mount = {"name": MODEL_VOLUME, "mountPath": "/mnt"}
    common = {
        "image": image,
        "resources": {
            "requests": {"cpu": "10m", "memory": "15Mi"},
            "limits": {"cpu": "10m", "memory": "15Mi"},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    link = "ln -sf /proc/$$$$/root/models /mnt/models && sleep infinity"
    look = (
        f"echo 'Pre-fetching modelcar {image}: ' && [ -d /models ] && "
        "[ \"$$(ls -A /models)\" ] && echo 'OK ... Prefetched and valid (/models exists)' || "
        "(echo 'NOK ... Prefetched but modelcar is invalid (/models does not exist or is empty)'"
        " && exit 1)"
    )
    _add(container, "volumeMounts", mount)
    _add(container, "env", _variable("MODEL_INIT_MODE", "async"))
    container.setdefault("securityContext", {})["runAsUser"] = SIDECAR_USER
    sidecar = {
        **common,
        "name": SIDECAR,
        "args": ["sh", "-c", link],
        "securityContext": {"runAsUser": SIDECAR_USER},
        "volumeMounts": [mount],
    }
    pod["containers"].append(sidecar)
    first = {**common, "name": f"{SIDECAR}-init", "args": ["sh", "-c", look], "volumeMounts": []}
    _add(pod, "initContainers", first)
    pod["shareProcessNamespace"] = True


def _add(holder: dict[str, Any], field: str, item: dict[str, Any]) -> None:
    holder.setdefault(field, []).append(item)


def _container(
    spec: PodSpec, name: str, patch: dict[str, Any], service: Document
) -> dict[str, Any]:
    (base,) = (each for each in spec["containers"] if each["name"] == name)
    container: dict[str, Any] = merge(base, {**patch, "name": name})
    if args := [*base.get("args", []), *patch.get("args", [])]:
        container["args"] = args
    return _fill(container, service["metadata"])


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


def _sizes(runtime: Document, service: Document, container: dict[str, Any]) -> list[dict[str, str]]:
    """The variables that head and workers have in common."""
    of_runtime = runtime["spec"]["workerSpec"]
    own = service["spec"]["predictor"]["workerSpec"]
    pipeline, tensor = (
        int(own.get(field, of_runtime.get(field, 1)))
        for field in ("pipelineParallelSize", "tensorParallelSize")
    )
    gpus = int(container["resources"]["limits"].get("nvidia.com/gpu", "1"))
    return [
        _variable("PIPELINE_PARALLEL_SIZE", str(pipeline)),
        _variable("TENSOR_PARALLEL_SIZE", str(tensor)),
        _variable("RAY_NODE_COUNT", str(-(-pipeline * tensor // gpus))),
        _variable("REQUEST_GPU_COUNT", str(gpus)),
    ]


def _variable(name: str, value: str) -> dict[str, str]:
    return {"name": name, "value": value}
