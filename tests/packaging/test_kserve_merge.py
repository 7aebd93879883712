"""KServe's merge, as tests/support/cluster/kserve.py imitates it.

What is merged is held to Kubernetes' own strategic merge, which ``kubectl patch --local`` runs and
KServe's controller calls as well.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.packaging.manifests import SETS, documents
from tests.packaging.pods import RUNTIME_KINDS, Document
from tests.support.cluster import kserve
from tests.support.cluster.strategic_merge import merge

WITH_A_SERVICE = [name for name in SETS if name.startswith(("example", "overlay local", "guide"))]

RUNTIME = {
    "kind": "ClusterServingRuntime",
    "metadata": {"name": "runtime"},
    "spec": {
        "supportedModelFormats": [{"name": "huggingface-lmcache", "autoSelect": True}],
        "containers": [
            {
                "name": "kserve-container",
                "image": "runtime:1",
                "command": ["serve"],
                "args": ["--model_name={{.Name}}", "--note={{ .Annotations.note }}"],
                "env": [
                    {"name": "A", "value": "1"},
                    {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                ],
                "ports": [{"name": "http1", "containerPort": 8080, "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
                "volumeMounts": [{"name": "config", "mountPath": "/lmcache", "readOnly": True}],
            }
        ],
        "volumes": [
            {"name": "config", "configMap": {"name": "lmcache-config", "optional": True}},
            {"name": "tmp", "emptyDir": {}},
        ],
    },
}
SERVICE = {
    "metadata": {"name": "llama", "annotations": {"note": "a < b"}},
    "spec": {
        "predictor": {
            "volumes": [
                {"name": "config", "configMap": {"name": "own"}},
                {"name": "more", "emptyDir": {"medium": "Memory"}},
            ],
            "model": {
                "modelFormat": {"name": "huggingface-lmcache"},
                "storageUri": "hf://a/b",
                "args": ["--model_name=other", "--x"],
                "env": [{"name": "C", "value": "3"}, {"name": "B", "value": "2"}],
                "resources": {"limits": {"memory": "2Gi"}},
                "volumeMounts": [{"name": "more", "mountPath": "/lmcache"}],
            },
        }
    },
}


def test_a_merge_by_hand() -> None:
    pod = kserve.predictor(RUNTIME, SERVICE)
    (container,) = pod["containers"]
    # The service's come later, and win where the server takes the last of two.
    assert container["args"] == [
        "--model_name=llama",
        "--note=a &lt; b",
        "--model_name=other",
        "--x",
    ]
    assert container["command"] == ["serve"]
    assert {each["name"]: each.get("value") for each in container["env"]} == {
        "A": "1",
        "B": "2",
        "C": "3",
        "INFERENCE_SERVICE_NAME": "llama",
    }
    assert container["resources"] == {"limits": {"cpu": "1", "memory": "2Gi"}}
    assert {each["mountPath"]: each["name"] for each in container["volumeMounts"]} == {
        "/lmcache": "more",
        "/mnt/models": kserve.MODEL_VOLUME,
    }
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert volumes["config"]["configMap"] == {"name": "own", "optional": True}
    assert set(volumes) == {"config", "tmp", "more", kserve.MODEL_VOLUME}


def test_neither_of_two_that_are_merged_is_changed() -> None:
    before = json.dumps([RUNTIME, SERVICE])
    kserve.predictor(RUNTIME, SERVICE)["containers"][0]["env"].append({"name": "D"})
    assert json.dumps([RUNTIME, SERVICE]) == before


@pytest.mark.parametrize("name", WITH_A_SERVICE)
def test_containers_and_volumes_merge_as_kubernetes_does_it(name: str, tmp_path: Path) -> None:
    runtime, service = _runtime_and_service(name)
    predictor = service["spec"]["predictor"]
    (base,) = runtime["spec"]["containers"]
    patch = {
        key: value
        for key, value in predictor["model"].items()
        if key not in ("modelFormat", "runtime", "storageUri")
    }
    pod = {"containers": [base], "volumes": runtime["spec"]["volumes"]}
    own = {
        "containers": [{**patch, "name": "kserve-container"}],
        "volumes": predictor.get("volumes", []),
    }
    assert _normal(merge(pod, own)) == _normal(_kubectl_patch(tmp_path, pod, own))


def test_a_made_up_pod_merges_as_kubernetes_does_it(tmp_path: Path) -> None:
    pod = {"containers": RUNTIME["spec"]["containers"], "volumes": RUNTIME["spec"]["volumes"]}
    predictor = SERVICE["spec"]["predictor"]
    model = {k: v for k, v in predictor["model"].items() if k not in ("modelFormat", "storageUri")}
    # KServe itself drops the source that the service replaces (B); Kubernetes keeps both.
    model["env"] = model["env"][:1]
    own = {
        "containers": [{**model, "name": "kserve-container"}],
        "volumes": predictor["volumes"],
    }
    assert _normal(merge(pod, own)) == _normal(_kubectl_patch(tmp_path, pod, own))


def test_many_nodes_get_their_sizes() -> None:
    runtime, service = _runtime_and_service("example multinode")
    head = kserve.predictor(runtime, service)
    worker = kserve.worker(runtime, service)
    for pod in (head, worker):
        values = {each["name"]: each.get("value") for each in pod["containers"][0]["env"]}
        assert values["TENSOR_PARALLEL_SIZE"] == "8"
        assert values["PIPELINE_PARALLEL_SIZE"] == "2"
        assert (values["RAY_NODE_COUNT"], values["REQUEST_GPU_COUNT"]) == ("2", "8")
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert head["containers"][0]["args"] == ["--model_name=llama-405b"]
    of_head, of_worker = (
        {each["name"]: each.get("value") for each in pod["containers"][0]["env"]}
        for pod in (head, worker)
    )
    assert of_head["MODEL_DIR"] == "/mnt/models"
    assert of_head["INFERENCE_SERVICE_NAME"] == of_worker["ISVC_NAME"] == "llama-405b"
    assert of_worker["HEAD_SVC"] == "llama-405b-head-1"
    assert of_worker["WORKER_SVC"] == "llama-405b-workers-1"
    # Only the pods of the head are the service's.
    assert "INFERENCE_SERVICE_NAME" not in of_worker


def test_a_model_comes_from_a_claim() -> None:
    runtime, service = _runtime_and_service("example pvc")
    pod = kserve.predictor(runtime, service)
    (container,) = pod["containers"]
    assert "initContainers" not in pod
    assert container["volumeMounts"][-1] == {
        "name": kserve.CLAIM_VOLUME,
        "mountPath": kserve.MODELS,
        "subPath": "Llama-3.2-1B-Instruct",
        "readOnly": True,
    }
    claim = {"claimName": "models"}
    assert pod["volumes"][-1] == {"name": kserve.CLAIM_VOLUME, "persistentVolumeClaim": claim}


def test_a_model_is_downloaded_after_the_services_own_init_containers() -> None:
    runtime, service = _runtime_and_service("overlay local")
    pod = kserve.predictor(runtime, service)
    assert [each["name"] for each in pod["initContainers"]] == ["preflight", "storage-initializer"]


def test_a_model_comes_from_an_image() -> None:
    service = {
        **SERVICE,
        "spec": {"predictor": {"model": dict(SERVICE["spec"]["predictor"]["model"])}},
    }
    service["spec"]["predictor"]["model"]["storageUri"] = "oci://registry.example/model:1"
    pod = kserve.predictor(RUNTIME, service)
    ours, sidecar = pod["containers"]
    assert sidecar["image"] == "registry.example/model:1"
    assert ours["securityContext"]["runAsUser"] == sidecar["securityContext"]["runAsUser"] == 1010
    assert ours["env"][-1] == {"name": "MODEL_INIT_MODE", "value": "async"}
    assert pod["shareProcessNamespace"] is True


def _runtime_and_service(name: str) -> tuple[Document, Document]:
    applied = documents(name)
    (service,) = (document for document in applied if document["kind"] == "InferenceService")
    runtimes = [document for document in applied if document["kind"] in RUNTIME_KINDS]
    return kserve.choose(runtimes, service), service


def _kubectl_patch(directory: Path, pod: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    file = directory / "pod.json"
    metadata = {"name": "pod"}
    document = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod}
    file.write_text(json.dumps(document))
    words = ["patch", "--local", "--filename", str(file), "--type", "strategic", "--output", "json"]
    result = subprocess.run(
        [str(Path(sys.executable).with_name("kubectl")), *words, "-p", json.dumps({"spec": patch})],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    spec: dict[str, Any] = json.loads(result.stdout)["spec"]
    return {key: spec[key] for key in pod}


def _normal(pod: dict[str, Any]) -> Any:
    """The pod with lists of named things in order: only command and args have an order."""
    if isinstance(pod, dict):
        return {key: _normal(value) for key, value in pod.items() if value not in ({}, None)}
    if isinstance(pod, list) and pod and isinstance(pod[0], dict):
        return sorted((_normal(each) for each in pod), key=json.dumps)
    return pod
