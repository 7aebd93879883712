"""Rules that KServe's webhooks and its controller hold runtimes and services to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

from kserve_lmcache.config.settings import SETTINGS
from tests.packaging.pods import RUNTIME_KINDS, Document, all_containers, label, pods
from tests.packaging.rules.fault import Fault, Rule

_PROTOCOLS = {"v1", "v2"}
_PLACEHOLDER = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_KSERVE_FIELD = re.compile(r"\.(Name|Namespace|(Labels|Annotations)\.\w+)")
_SIZES = {"TENSOR_PARALLEL_SIZE", "PIPELINE_PARALLEL_SIZE"}
_UNITS = {"": 1, "m": 0.001, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_SHUTDOWN = ("drain_delay", "drain_timeout", "termination_grace_period")
_DEFAULT_GRACE = 30.0  # Kubernetes'
_SERVER_TYPE = "serving.kserve.io/server-type"
_AUTOSCALER = "serving.kserve.io/autoscalerClass"


def _runtimes(documents: Sequence[Document]) -> list[Document]:
    return [document for document in documents if document.get("kind") in RUNTIME_KINDS]


def _services(documents: Sequence[Document]) -> list[Document]:
    return [document for document in documents if document.get("kind") == "InferenceService"]


def _container_name(documents: Sequence[Document]) -> Iterator[Fault]:
    for runtime in _runtimes(documents):
        wanted = ["kserve-container", "worker-container"]
        for pod, name in zip(pods(runtime), wanted, strict=False):
            names = [container.get("name") for container in pod.spec.get("containers", [])]
            if name not in names:
                yield label(runtime), f"has containers {names}, none of them {name}"


def _protocols(documents: Sequence[Document]) -> Iterator[Fault]:
    for runtime in _runtimes(documents):
        missing = _PROTOCOLS - set(runtime["spec"].get("protocolVersions", []))
        if missing:
            yield label(runtime), f"lacks the protocol versions {sorted(missing)}"


def _priorities(documents: Sequence[Document]) -> Iterator[Fault]:
    """The webhook refuses the second of two; without priorities the newer one wins."""
    selected = [
        (label(runtime), entry["name"], entry.get("priority"))
        for runtime in _runtimes(documents)
        for entry in runtime["spec"].get("supportedModelFormats", [])
        if entry.get("autoSelect")
    ]
    for (one, format_name, priority), (other, *rest) in combinations(selected, 2):
        if one != other and rest == [format_name, priority]:
            yield other, f"may be selected for {format_name} with the priority of {one}"


def _server_type(documents: Sequence[Document]) -> Iterator[Fault]:
    for runtime in _runtimes(documents):
        if _SERVER_TYPE in runtime["metadata"].get("annotations", {}):
            yield label(runtime), f"has {_SERVER_TYPE}: the controller would rewrite its image"


def _storage(documents: Sequence[Document]) -> Iterator[Fault]:
    for service in _services(documents):
        model = service.get("spec", {}).get("predictor", {}).get("model")
        if model and not (model.get("storageUri") or model.get("storage")):
            name = model.get("modelFormat", {}).get("name")
            if name != "huggingface":
                yield label(service), f"has no storageUri: multi-model for the format {name}"


def _formats(documents: Sequence[Document]) -> Iterator[Fault]:
    """A service that names no runtime must be of a format that one is selected for."""
    runtimes = _runtimes(documents)
    for service in _services(documents):
        predictor = service["spec"].get("predictor", {})
        model = predictor.get("model", {})
        name, wanted = model.get("modelFormat", {}).get("name"), model.get("runtime")
        candidates = [
            entry
            for runtime in runtimes
            for entry in runtime["spec"].get("supportedModelFormats", [])
            if entry["name"] == name
            and (runtime["metadata"].get("name") == wanted if wanted else entry.get("autoSelect"))
            and ("workerSpec" in runtime["spec"]) == ("workerSpec" in predictor)
        ]
        if runtimes and not candidates:
            yield label(service), f"is for {wanted or 'any runtime'}, and none takes {name}"


def _multi_node(documents: Sequence[Document]) -> Iterator[Fault]:
    for document in [*_runtimes(documents), *_services(documents)]:
        spec = document["spec"].get("predictor", document["spec"])
        worker = spec.get("workerSpec")
        if worker is None:
            continue
        if len(worker.get("containers", [])) > 1:
            yield label(document), "has a workerSpec of more than one container"
        for pod in pods(document):
            for container in pod.containers:
                names = {variable.get("name") for variable in container.spec.get("env", [])}
                if names & _SIZES:
                    yield container.where, f"sets {sorted(names & _SIZES)}, which KServe does"
        if document["kind"] == "InferenceService":
            uri = spec.get("model", {}).get("storageUri", "")
            if uri.partition("://")[0] not in ("pvc", "oci"):
                yield label(document), f"takes its model from {uri}: pvc or oci for many nodes"
            if document["metadata"].get("annotations", {}).get(_AUTOSCALER) != "none":
                yield label(document), f"needs {_AUTOSCALER}: none"


def _python_path(documents: Sequence[Document]) -> Iterator[Fault]:
    for container in all_containers(documents):
        names = [variable.get("name") for variable in container.spec.get("env", [])]
        if "PYTHONPATH" in names:
            yield container.where, "sets PYTHONPATH, which KServe's webhook refuses"


def _placeholders(documents: Sequence[Document]) -> Iterator[Fault]:
    for container in all_containers(_runtimes(documents)):
        for field in _PLACEHOLDER.findall(str(container.spec)):
            if not _KSERVE_FIELD.fullmatch(field.strip()):
                yield container.where, f"has a placeholder that KServe cannot fill: {field}"


def _resources(documents: Sequence[Document]) -> Iterator[Fault]:
    """What KServe's merge of a runtime and a service, key by key, comes to in a pod."""
    runtimes = _runtimes(documents)
    for runtime in runtimes:
        for pod in pods(runtime):
            for container in pod.containers:
                if container.spec.get("resources", {}).get("requests"):
                    yield container.where, "keeps its requests beside the limits of a service"
    for service in _services(documents):
        predictor = service["spec"].get("predictor", {})
        own = predictor.get("model", {})
        for runtime in runtimes:
            wanted = own.get("runtime")
            is_chosen = runtime["metadata"].get("name") == wanted if wanted else True
            if is_chosen and ("workerSpec" in runtime["spec"]) == ("workerSpec" in predictor):
                (base, *_) = runtime["spec"]["containers"]
                for fault in _faults_of(base.get("resources", {}), own.get("resources", {})):
                    yield label(service), fault


def _faults_of(base: dict[str, Any], own: dict[str, Any]) -> Iterator[str]:
    limits, requests = (
        {**base.get(kind, {}), **own.get(kind, {})} for kind in ("limits", "requests")
    )
    for name, limit in limits.items():
        request = requests.get(name, limit)
        if _number(request) > _number(limit) or ("/" in name and request != limit):
            yield f"requests {request} of {name}, and its limit is {limit}"
    devices = [name for name, limit in limits.items() if "/" in name and _number(limit)]
    if len(devices) > 1:
        yield f"asks for {' and '.join(sorted(devices))} at the same time"


def _number(quantity: str) -> float:
    match = re.fullmatch(r"([\d.]+)(\w*)", str(quantity))
    assert match, quantity
    return float(match[1]) * _UNITS[match[2]]


def _grace_period(documents: Sequence[Document]) -> Iterator[Fault]:
    """A pod's grace period is longer than its server's shutdown, and the server knows it."""
    for service in _services(documents):
        for pod in pods(service):
            grace = pod.spec.get("terminationGracePeriodSeconds")
            for container in pod.containers:
                env = {each["name"]: each.get("value") for each in container.spec.get("env", [])}
                delay, timeout, known = (_seconds(name, env) for name in _SHUTDOWN)
                if container.inherits and grace is not None and known != grace:
                    yield container.where, f"does not know its grace period of {grace} s"
                elif container.inherits and delay + timeout >= (grace or _DEFAULT_GRACE):
                    yield container.where, f"ends after {delay + timeout:g} s, which is too late"


def _seconds(name: str, env: dict[str, str | None]) -> float:
    setting = next(each for each in SETTINGS if each.name == name)
    return float(env.get(setting.environment_variable) or setting.default or _DEFAULT_GRACE)


RULES: dict[str, Rule] = {
    "resources": _resources,
    "grace-period": _grace_period,
    "container-name": _container_name,
    "protocols": _protocols,
    "priorities": _priorities,
    "server-type": _server_type,
    "storage": _storage,
    "formats": _formats,
    "multi-node": _multi_node,
    "python-path": _python_path,
    "placeholders": _placeholders,
}
