"""The objects that KServe and Kubernetes make of a set of documents.

A service gets a Deployment, a Service, an autoscaler and pods (in serverless mode a Service of
Knative), a store its pod or pods. Only one pod is made for each Deployment: its replicas are alike.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.support.cluster import kserve
from tests.support.cluster.api_defaults import stored

Document = dict[str, Any]

RUNTIME_KINDS = ("ClusterServingRuntime", "ServingRuntime")
PREFIX = "serving.kserve.io/"
SOURCE = "internal.serving.kserve.io/storage-initializer-sourceuri"
_MODES = {"RawDeployment": "Standard", "Serverless": "Knative"}
# KServe's configuration where nobody names a mode, and the domain that it comes with.
MODE, DOMAIN = "Standard", "example.com"


def objects(documents: Sequence[Document], namespace: str) -> list[Document]:
    """What stands in a namespace after the documents were applied there."""
    found: list[Document] = []
    runtimes = [each for each in documents if each["kind"] in RUNTIME_KINDS]
    for document in documents:
        if document["kind"] == "InferenceService":
            accounts = [each for each in documents if each["kind"] == "ServiceAccount"]
            found += _of_service(runtimes, document, accounts, namespace)
        elif document["kind"] in ("StatefulSet", "Service"):
            found += [document, *_pods_of(document)]
    return [stored(document) for document in found]


def _of_service(
    runtimes: Sequence[Document],
    service: Document,
    accounts: Sequence[Document],
    namespace: str,
) -> Iterator[Document]:
    runtime = kserve.choose(runtimes, service)
    yield _defaulted(service, runtime, namespace)
    if mode_of(service) == "Knative":
        yield _knative(service, runtime)
        return
    yield from _of_component(service, runtime, accounts, namespace)
    for canary in service["spec"].get("canary", []):
        own = copy.deepcopy(service)
        own["spec"] = {"predictor": canary["predictor"]}
        chosen = kserve.choose(runtimes, own)
        yield from _of_component(
            own, chosen, accounts, namespace, f"-{canary['predictor']['name']}"
        )


def mode_of(service: Document) -> str:
    """How a service is deployed, by the name that the cluster gives it."""
    named = service["metadata"].get("annotations", {}).get(f"{PREFIX}deploymentMode", MODE)
    return _MODES.get(named, named)


def _defaulted(service: Document, runtime: Document, namespace: str) -> Document:
    """The service with what KServe's webhook and controller write into it."""
    service = copy.deepcopy(service)
    metadata, name = service["metadata"], service["metadata"]["name"]
    predictors = [service["spec"]["predictor"]]
    predictors += [each["predictor"] for each in service["spec"].get("canary", [])]
    for each in predictors:
        each["model"].setdefault("name", "")
        each["model"].setdefault("resources", {})
    annotations = metadata.setdefault("annotations", {})
    annotations["modelFormat"] = predictors[0]["model"]["modelFormat"]["name"]
    annotations[f"{PREFIX}deploymentMode"] = mode_of(service)
    metadata["finalizers"] = ["inferenceservice.finalizers"]
    scope = "clusterS" if runtime["kind"] == "ClusterServingRuntime" else "s"
    service["status"] = {
        f"{scope}ervingRuntimeName": runtime["metadata"]["name"],
        "deploymentMode": mode_of(service),
        "url": f"http://{name}-{namespace}.{DOMAIN}",
    }
    return service


def _of_component(
    service: Document,
    runtime: Document,
    accounts: Sequence[Document],
    namespace: str,
    suffix: str = "",
) -> Iterator[Document]:
    """The objects of a predictor in Standard mode."""
    own = service["spec"]["predictor"]
    name = f"{service['metadata']['name']}{suffix}-predictor"
    metadata = _metadata(service, runtime, name)
    pod = kserve.template(runtime, service)
    yield _deployment(metadata, {"app": f"isvc.{name}"}, pod, 1, namespace)
    (container, *_) = pod["containers"]
    yield {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "selector": {"app": f"isvc.{name}"},
            "ports": [
                {
                    "name": port["name"],
                    "protocol": "TCP",
                    "port": 80 if index == 0 else port["containerPort"],
                    "targetPort": port["containerPort"],
                }
                for index, port in enumerate(container["ports"])
            ],
        },
    }
    yield from _autoscaler(service, metadata)
    (account, *_) = [
        each for each in accounts if each["metadata"]["name"] == own.get("serviceAccountName")
    ] or [None]
    yield _pod(metadata, kserve.predictor(runtime, service, account))
    if "workerSpec" in own:
        yield from _of_workers(service, runtime, metadata, namespace)


def _metadata(service: Document, runtime: Document, name: str) -> dict[str, Any]:
    spec, own = runtime["spec"], service["spec"]["predictor"]
    annotations = {
        **spec.get("annotations", {}),
        **{
            key: value
            for key, value in service["metadata"].get("annotations", {}).items()
            if key not in ("kubectl.kubernetes.io/last-applied-configuration", "modelFormat")
        },
        **own.get("annotations", {}),
        f"{PREFIX}deploymentMode": mode_of(service),
    }
    if uri := kserve.storage_uri(service):
        annotations[SOURCE] = uri
    labels = {
        **spec.get("labels", {}),
        **service["metadata"].get("labels", {}),
        **own.get("labels", {}),
        "app": f"isvc.{name}",
        "component": "predictor",
        f"{PREFIX}inferenceservice": service["metadata"]["name"],
    }
    if "workerSpec" in own:
        labels["isvc.generation"] = kserve.GENERATION
    return {
        "name": name,
        "annotations": annotations,
        "labels": labels,
        "ownerReferences": [
            {
                "apiVersion": service["apiVersion"],
                "kind": service["kind"],
                "name": service["metadata"]["name"],
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def _deployment(
    metadata: dict[str, Any],
    selector: dict[str, str],
    pod: dict[str, Any],
    replicas: int,
    namespace: str,
) -> Document:
    template = {key: metadata[key] for key in ("annotations", "labels", "name")}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": selector},
            "template": {"metadata": {**template, "namespace": namespace}, "spec": pod},
        },
    }


def _pod(metadata: Mapping[str, Any], spec: dict[str, Any]) -> Document:
    """A pod of a Deployment, after KServe's webhook."""
    annotations = {
        **metadata["annotations"],
        f"{PREFIX}enable-metric-aggregation": "false",
        f"{PREFIX}enable-prometheus-scraping": "false",
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"annotations": annotations, "labels": metadata["labels"]},
        "spec": spec,
    }


def _of_workers(
    service: Document, runtime: Document, head: Mapping[str, Any], namespace: str
) -> Iterator[Document]:
    own, of_runtime = service["spec"]["predictor"]["workerSpec"], runtime["spec"]["workerSpec"]
    predictor = f"isvc.{head['name']}"
    generation = {"isvc.generation": kserve.GENERATION}
    for name, selected, role in (
        (kserve.head_service(service), predictor, "head"),
        (kserve.worker_service(service), f"{predictor}-worker", "worker"),
    ):
        labels = {**head["labels"], "multinode/role": role}
        yield {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {**head, "name": name, "labels": labels},
            "spec": {
                "selector": {"app": selected, **generation},
                "publishNotReadyAddresses": True,
            },
        }
    pod = kserve.worker_template(runtime, service)
    sizes = {each["name"]: each.get("value") for each in pod["containers"][0]["env"]}
    metadata = {
        **head,
        "name": f"{head['name']}-worker",
        "annotations": {
            key: value for key, value in head["annotations"].items() if key.startswith(PREFIX)
        }
        | of_runtime.get("annotations", {})
        | {SOURCE: head["annotations"][SOURCE]},
        "labels": {
            **{
                key: value
                for key, value in head["labels"].items()
                if key not in runtime["spec"].get("labels", {})
            },
            **of_runtime.get("labels", {}),
            **own.get("labels", {}),
            "app": f"{predictor}-worker",
        },
    }
    selector = {"app": f"{predictor}-worker", **generation}
    yield _deployment(metadata, selector, pod, int(str(sizes["RAY_NODE_COUNT"])) - 1, namespace)
    yield _pod(metadata, kserve.worker(runtime, service))


def _autoscaler(service: Document, metadata: dict[str, Any]) -> Iterator[Document]:
    """An HPA, KEDA's object, or none."""
    own = service["spec"]["predictor"]
    kind = service["metadata"].get("annotations", {}).get(f"{PREFIX}autoscalerClass", "hpa")
    least = own.get("minReplicas", 1)
    most = max(own.get("maxReplicas", least), least)
    if kind == "keda":
        yield {
            "apiVersion": "keda.sh/v1alpha1",
            "kind": "ScaledObject",
            "metadata": metadata,
            "spec": {
                "advanced": {
                    "horizontalPodAutoscalerConfig": {"behavior": own["autoScaling"]["behavior"]},
                    "scalingModifiers": {},
                },
                "minReplicaCount": least,
                "maxReplicaCount": most,
                "scaleTargetRef": {"name": metadata["name"]},
                # No metricType: KEDA's default holds, whatever the target's type is.
                "triggers": [
                    {
                        "type": metric["external"]["metric"]["backend"],
                        "metadata": {
                            "query": metric["external"]["metric"]["query"],
                            "serverAddress": metric["external"]["metric"]["serverAddress"],
                            "threshold": metric["external"]["target"]["value"],
                        },
                    }
                    for metric in own["autoScaling"]["metrics"]
                ],
            },
        }
    if kind == "hpa":
        target = {"type": "Utilization", "averageUtilization": own.get("scaleTarget", 80)}
        resource = {"name": own.get("scaleMetric", "cpu"), "target": target}
        reference = {"apiVersion": "apps/v1", "kind": "Deployment", "name": metadata["name"]}
        yield {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": metadata,
            "spec": {
                "minReplicas": least,
                "maxReplicas": most,
                "scaleTargetRef": reference,
                "metrics": [{"type": "Resource", "resource": resource}],
            },
        }


def _knative(service: Document, runtime: Document) -> Document:
    """The Service of Knative that a service in serverless mode becomes."""
    own = service["spec"]["predictor"]
    metadata = _metadata(service, runtime, f"{service['metadata']['name']}-predictor")
    labels = {key: value for key, value in metadata["labels"].items() if key != "app"}
    scale = {
        "autoscaling.knative.dev/class": "kpa.autoscaling.knative.dev",
        "autoscaling.knative.dev/min-scale": str(own.get("minReplicas", 1)),
    }
    template = {"annotations": {**metadata["annotations"], **scale}, "labels": labels}
    return {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": metadata["name"], "labels": labels},
        "spec": {
            # The first revision has all the traffic, whatever canaryTrafficPercent says.
            "template": {"metadata": template, "spec": kserve.template(runtime, service)},
            "traffic": [{"latestRevision": True, "percent": 100}],
        },
    }


def _pods_of(document: Document) -> Iterator[Document]:
    """The pods of a StatefulSet."""
    spec = document["spec"]
    for index in range(spec.get("replicas", 0)):
        name = f"{document['metadata']['name']}-{index}"
        labels = {
            **spec["template"]["metadata"]["labels"],
            "apps.kubernetes.io/pod-index": str(index),
            "statefulset.kubernetes.io/pod-name": name,
        }
        pod = {**spec["template"]["spec"], "hostname": name, "subdomain": spec["serviceName"]}
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": labels}, "spec": pod}
