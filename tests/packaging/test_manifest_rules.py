"""Each rule against a sound set of manifests with one fault planted in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.packaging.pods import Document
from tests.packaging.rules import RULES, check

SOUND = """
apiVersion: serving.kserve.io/v1alpha1
kind: ClusterServingRuntime
metadata: {name: runtime}
spec:
  protocolVersions: [v2, v1]
  containers:
    - name: kserve-container
      image: registry.example:5000/runtime:1.0
      args: ["--model_name={{.Name}}"]
      env: [{name: HF_HOME, value: /tmp/hf}]
      ports: [{name: http1, containerPort: 8080}]
      readinessProbe: {httpGet: {path: /v2/health/ready, port: 8080}, periodSeconds: 10}
      livenessProbe: {tcpSocket: {port: http1}}
      resources: {limits: {cpu: "1", hugepages-2Mi: 4Mi, nvidia.com/gpu: "1"}}
      securityContext:
        runAsNonRoot: true
        allowPrivilegeEscalation: false
        capabilities: {drop: [ALL]}
        seccompProfile: {type: RuntimeDefault}
      volumeMounts: [{name: config, mountPath: /lmcache}]
  volumes: [{name: config, configMap: {name: lmcache-config, optional: true}}]
---
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: service}
spec:
  predictor:
    model:
      modelFormat: {name: huggingface-lmcache}
      storageUri: hf://organisation/model
      args: [--max-model-len=1000]
      env:
        - name: SETTING
          valueFrom: {configMapKeyRef: {name: created, key: setting}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: created}
data: {setting: value}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: redis}
spec:
  selector: {matchLabels: {app: redis}}
  template:
    metadata: {labels: {app: redis, tier: cache}}
    spec:
      securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
      containers:
        - name: redis
          image: redis@sha256:0000000000000000000000000000000000000000000000000000000000000000
          args: [--save, ""]
          securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
---
apiVersion: v1
kind: Service
metadata: {name: redis}
spec: {selector: {app: redis}}
"""

Plant = Callable[[Document], object]


def _container(runtime: Document) -> dict[str, Any]:
    container: dict[str, Any] = runtime["spec"]["containers"][0]
    return container


def _model(service: Document) -> dict[str, Any]:
    model: dict[str, Any] = service["spec"]["predictor"]["model"]
    return model


def _redis(deployment: Document) -> dict[str, Any]:
    container: dict[str, Any] = deployment["spec"]["template"]["spec"]["containers"][0]
    return container


FAULTS: list[tuple[str, str, Plant]] = [
    ("identity", "ConfigMap", lambda d: d.pop("apiVersion")),
    ("identity", "Service", lambda d: d.update(metadata={})),
    ("container-name", "ClusterServingRuntime", lambda d: _container(d).update(name="server")),
    ("protocols", "ClusterServingRuntime", lambda d: d["spec"]["protocolVersions"].remove("v1")),
    ("protocols", "ClusterServingRuntime", lambda d: d["spec"].pop("protocolVersions")),
    ("storage", "InferenceService", lambda d: _model(d).pop("storageUri")),
    (
        "quoted-arguments",
        "InferenceService",
        lambda d: _model(d)["args"].append("--a='{\"b\": 1}'"),
    ),
    ("quoted-arguments", "Deployment", lambda d: _redis(d)["args"].append('"4gb"')),
    ("strings", "Deployment", lambda d: _redis(d)["args"].append(8080)),
    ("strings", "Deployment", lambda d: _redis(d).update(command=["redis-server", True])),
    ("strings", "ClusterServingRuntime", lambda d: _container(d)["env"][0].update(value=1)),
    ("placeholders", "ClusterServingRuntime", lambda d: _container(d)["args"].append("{{.Model}}")),
    (
        "resource-names",
        "ClusterServingRuntime",
        lambda d: _container(d)["resources"].update(requests={"nvidia.com.gpu": "1"}),
    ),
    (
        "python-path",
        "InferenceService",
        lambda d: _model(d)["env"].append({"name": "PYTHONPATH", "value": "/plugins"}),
    ),
    ("images", "Deployment", lambda d: _redis(d).update(image="redis:latest")),
    ("images", "Deployment", lambda d: _redis(d).update(image="registry.example:5000/redis")),
    ("images", "ClusterServingRuntime", lambda d: _container(d).update(image="runtime:replace")),
    ("mounts", "ClusterServingRuntime", lambda d: d["spec"].pop("volumes")),
    (
        "config-maps",
        "ClusterServingRuntime",
        lambda d: d["spec"]["volumes"][0]["configMap"].pop("optional"),
    ),
    ("config-maps", "ConfigMap", lambda d: d["metadata"].update(name="renamed")),
    (
        "config-maps",
        "Deployment",
        lambda d: _redis(d).update(envFrom=[{"configMapRef": {"name": "absent"}}]),
    ),
    (
        "probe-ports",
        "ClusterServingRuntime",
        lambda d: _container(d)["readinessProbe"]["httpGet"].update(port=8000),
    ),
    ("probe-ports", "ClusterServingRuntime", lambda d: _container(d).pop("ports")),
    ("selectors", "Service", lambda d: d["spec"].update(selector={"app": "valkey"})),
    ("restricted", "Deployment", lambda d: _redis(d).pop("securityContext")),
    ("restricted", "Deployment", lambda d: _redis(d)["securityContext"].update(runAsUser=0)),
    ("restricted", "Deployment", lambda d: _redis(d)["securityContext"].update(privileged=True)),
    (
        "restricted",
        "ClusterServingRuntime",
        lambda d: _container(d)["securityContext"].pop("seccompProfile"),
    ),
    (
        "restricted",
        "ClusterServingRuntime",
        lambda d: _container(d)["securityContext"]["capabilities"].update(add=["SYS_ADMIN"]),
    ),
    (
        "restricted",
        "InferenceService",
        lambda d: _model(d).update(securityContext={"runAsNonRoot": False}),
    ),
]

GUIDE_AS_PRINTED = """
apiVersion: v1
kind: ConfigMap
metadata:
  name: lmcache-config
data:
  lmcache_config.yaml: |
    local_cpu: true
---
kind: InferenceService
metadata:
  name: huggingface-llama3
spec:
  predictor:
    minReplicas: 2
    model:
      modelFormat:
        name: huggingface
      args:
        - --model_name=llama3
        - --model_id=meta-llama/Llama-3.2-1B-Instruct
        - --kv-transfer-config='{"kv_connector":"LMCacheConnectorV1", "kv_role":"kv_both"}'
      resources:
        limits:
          nvidia.com/gpu: "1"
        requests:
          nvidia.com.gpu: "1"
      volumeMounts:
        - name: lmcache-config-volume
          mountPath: /lmcache
          readOnly: true
    volumes:
      - name: lmcache-config-volume
        configMap:
          name: lmcache-config
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: redis
spec:
  selector:
    matchLabels:
      app: redis
  template:
    metadata:
      labels:
        app: redis
    spec:
      containers:
        - name: redis
          image: redis:latest
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: lmcache-server
spec:
  selector:
    matchLabels:
      app: lmcache-server
  template:
    metadata:
      labels:
        app: lmcache-server
    spec:
      containers:
        - name: lmcache-server
          image: kserve/huggingfaceserver:v0.15.1
          command:
            - lmcache_experimental_server
            - "0.0.0.0"
            - 8080
"""


def _sound() -> dict[str, Document]:
    return {document["kind"]: document for document in yaml.safe_load_all(SOUND)}


def test_sound_manifests_trip_no_rule() -> None:
    assert check(list(_sound().values())) == []


@pytest.mark.parametrize(("rule", "kind", "plant"), FAULTS)
def test_planted_fault_trips_its_rule(rule: str, kind: str, plant: Plant) -> None:
    documents = _sound()
    plant(documents[kind])
    assert {finding.rule for finding in check(list(documents.values()))} == {rule}


def test_every_rule_has_a_planted_fault() -> None:
    assert {rule for rule, _, _ in FAULTS} == set(RULES)


def test_the_guide_as_printed_trips_its_rules() -> None:
    documents = list(yaml.safe_load_all(GUIDE_AS_PRINTED))
    found = {(finding.rule, finding.where) for finding in check(documents)}
    service = "InferenceService/huggingface-llama3"
    assert found == {
        ("identity", service),
        ("quoted-arguments", f"{service} model"),
        ("resource-names", f"{service} model"),
        ("images", "Deployment/redis redis"),
        ("strings", "Deployment/lmcache-server lmcache-server"),
        ("restricted", "Deployment/redis redis"),
        ("restricted", "Deployment/lmcache-server lmcache-server"),
    }
