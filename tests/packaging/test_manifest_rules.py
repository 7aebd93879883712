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
  labels: {remote-client: "true"}
  supportedModelFormats: [{name: huggingface-lmcache, autoSelect: true, priority: 1}]
  protocolVersions: [v2, v1]
  containers:
    - name: kserve-container
      image: registry.example:5000/runtime:1.0
      args: ["--model_name={{.Name}}"]
      env: [{name: HF_HOME, value: /tmp/hf}]
      ports: [{name: http1, containerPort: 8080}]
      readinessProbe: {httpGet: {path: /v2/health/ready, port: 8080}, periodSeconds: 10}
      livenessProbe: {tcpSocket: {port: http1}}
      resources: {limits: {memory: 1Gi, hugepages-2Mi: 4Mi, nvidia.com/gpu: "1"}}
      securityContext: CLOSED
      volumeMounts: [{name: config, mountPath: /lmcache}]
  volumes: [{name: config, configMap: {name: lmcache-config, optional: true}}]
---
apiVersion: serving.kserve.io/v1alpha1
kind: ServingRuntime
metadata: {name: multinode}
spec:
  supportedModelFormats: [{name: huggingface-lmcache, autoSelect: true, priority: 2}]
  protocolVersions: [v2, v1]
  containers:
    - name: kserve-container
      resources: {limits: {memory: 1Gi}}
      securityContext: CLOSED
  workerSpec:
    containers:
      - name: worker-container
        resources: {limits: {memory: 1Gi}}
        securityContext: CLOSED
---
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: service
  annotations: {serving.kserve.io/deploymentMode: RawDeployment}
spec:
  predictor:
    securityContext: {seccompProfile: {type: RuntimeDefault}}
    initContainers:
      - name: preflight
        resources: {limits: {memory: 1Gi}}
        securityContext: CLOSED
        volumeMounts: [{name: config, mountPath: /lmcache}]
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
          ports: [{name: redis, containerPort: 6379}]
          resources: {limits: {memory: 1Gi}}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {drop: [ALL]}
      volumes: [{name: data, emptyDir: {}}]
---
apiVersion: v1
kind: Service
metadata: {name: redis}
spec: {selector: {app: redis}, ports: [{port: 6379, targetPort: redis}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: redis}
spec:
  podSelector: {matchLabels: {app: redis}}
  policyTypes: [Ingress, Egress]
  ingress:
    - from: [{podSelector: {matchLabels: {remote-client: "true"}}}]
      ports: [{port: redis}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: redis}
spec:
  maxUnavailable: 1
  selector: {matchExpressions: [{key: tier, operator: In, values: [cache]}]}
---
apiVersion: v1
kind: Secret
metadata: {name: password}
stringData: {}
""".replace(
    "CLOSED",
    "{runAsNonRoot: true, allowPrivilegeEscalation: false, readOnlyRootFilesystem: true,"
    " capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}",
)

Plant = Callable[[Document], object]


def _container(runtime: Document) -> dict[str, Any]:
    container: dict[str, Any] = runtime["spec"]["containers"][0]
    return container


def _worker(runtime: Document) -> dict[str, Any]:
    worker: dict[str, Any] = runtime["spec"]["workerSpec"]
    return worker


def _model(service: Document) -> dict[str, Any]:
    model: dict[str, Any] = service["spec"]["predictor"]["model"]
    return model


def _init(service: Document) -> dict[str, Any]:
    container: dict[str, Any] = service["spec"]["predictor"]["initContainers"][0]
    return container


def _pod(deployment: Document) -> dict[str, Any]:
    pod: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return pod


def _asks(service: Document, **resources: dict[str, str]) -> None:
    _model(service)["resources"] = resources


def _variable(setting: str, value: str) -> dict[str, str]:
    return {"name": f"KSERVE_LMCACHE_{setting}", "value": value}


def _redis(deployment: Document) -> dict[str, Any]:
    container: dict[str, Any] = _pod(deployment)["containers"][0]
    return container


def _ingress(policy: Document) -> dict[str, Any]:
    rule: dict[str, Any] = policy["spec"]["ingress"][0]
    return rule


RUNTIME, MULTINODE, SERVICE = "ClusterServingRuntime", "ServingRuntime", "InferenceService"
DEPLOYMENT, POLICY = "Deployment", "NetworkPolicy"
WORKERS = {"containers": [{"name": "worker-container"}]}
MODE = "serving.kserve.io/deploymentMode"
NO_AUTOSCALER = {"serving.kserve.io/autoscalerClass": "none", MODE: "RawDeployment"}

FAULTS: list[tuple[str, str, Plant]] = [
    ("identity", "ConfigMap", lambda d: d.pop("apiVersion")),
    ("identity", "PodDisruptionBudget", lambda d: d.update(metadata={})),
    ("twice", "ConfigMap", lambda d: None),  # planted by the test: the document once more
    (
        "config-maps",
        RUNTIME,
        lambda d: d["spec"]["volumes"][0]["configMap"].pop("optional"),
    ),
    (
        "config-maps",
        RUNTIME,
        lambda d: d["spec"]["volumes"][0].update(
            configMap=None, projected={"sources": [{"configMap": {"name": "absent"}}]}
        ),
    ),
    ("config-maps", "ConfigMap", lambda d: d["metadata"].update(name="renamed")),
    (
        "config-maps",
        DEPLOYMENT,
        lambda d: _redis(d).update(envFrom=[{"configMapRef": {"name": "absent"}}]),
    ),
    ("secret-values", "Secret", lambda d: d.update(stringData={"password": "x"})),
    ("container-name", RUNTIME, lambda d: _container(d).update(name="server")),
    ("container-name", MULTINODE, lambda d: _worker(d)["containers"][0].update(name="worker")),
    ("protocols", RUNTIME, lambda d: d["spec"]["protocolVersions"].remove("v1")),
    ("protocols", RUNTIME, lambda d: d["spec"].pop("protocolVersions")),
    ("priorities", MULTINODE, lambda d: d["spec"]["supportedModelFormats"][0].update(priority=1)),
    (
        "server-type",
        RUNTIME,
        lambda d: d["metadata"].update(annotations={"serving.kserve.io/server-type": "vllmserver"}),
    ),
    ("storage", SERVICE, lambda d: _model(d).pop("storageUri")),
    ("formats", SERVICE, lambda d: _model(d)["modelFormat"].update(name="huggingface")),
    ("formats", SERVICE, lambda d: _model(d).update(runtime="another")),
    (
        "multi-node",
        MULTINODE,
        lambda d: _container(d).update(env=[{"name": "TENSOR_PARALLEL_SIZE", "value": "2"}]),
    ),
    (
        "multi-node",
        MULTINODE,
        lambda d: _worker(d)["containers"].append({**_worker(d)["containers"][0], "name": "b"}),
    ),
    (
        "multi-node",
        SERVICE,
        lambda d: (
            d["spec"]["predictor"].update(workerSpec=WORKERS),
            d["metadata"].update(annotations=NO_AUTOSCALER),
        ),
    ),
    (
        "multi-node",
        SERVICE,
        lambda d: (
            d["spec"]["predictor"].update(workerSpec=WORKERS),
            _model(d).update(storageUri="pvc://models/model"),
        ),
    ),
    (
        "resources",
        RUNTIME,
        lambda d: _container(d)["resources"].update(requests={"nvidia.com/gpu": "1"}),
    ),
    ("resources", SERVICE, lambda d: _asks(d, limits={"nvidia.com/mig-1g.10gb": "1"})),
    ("resources", SERVICE, lambda d: _asks(d, requests={"memory": "2Gi"})),
    ("resources", SERVICE, lambda d: _asks(d, requests={"nvidia.com/gpu": "2"})),
    (
        "grace-period",
        SERVICE,
        lambda d: d["spec"]["predictor"].update(terminationGracePeriodSeconds=60),
    ),
    (
        "grace-period",
        SERVICE,
        lambda d: (
            d["spec"]["predictor"].update(terminationGracePeriodSeconds=60),
            _model(d)["env"].append(_variable("TERMINATION_GRACE_PERIOD", "45")),
        ),
    ),
    ("grace-period", SERVICE, lambda d: _model(d)["env"].append(_variable("DRAIN_DELAY", "10"))),
    (
        "python-path",
        SERVICE,
        lambda d: _model(d)["env"].append({"name": "PYTHONPATH", "value": "/plugins"}),
    ),
    ("placeholders", RUNTIME, lambda d: _container(d)["args"].append("{{.Model}}")),
    ("quoted-arguments", SERVICE, lambda d: _model(d)["args"].append("--a='{\"b\": 1}'")),
    ("quoted-arguments", DEPLOYMENT, lambda d: _redis(d)["args"].append('"4gb"')),
    ("strings", DEPLOYMENT, lambda d: _redis(d)["args"].append(8080)),
    ("strings", DEPLOYMENT, lambda d: _redis(d).update(command=["redis-server", True])),
    ("strings", RUNTIME, lambda d: _container(d)["env"][0].update(value=1)),
    (
        "resource-names",
        RUNTIME,
        lambda d: _container(d)["resources"]["limits"].update({"nvidia.com.gpu": "1"}),
    ),
    ("memory-limit", DEPLOYMENT, lambda d: _redis(d).pop("resources")),
    ("memory-limit", SERVICE, lambda d: _init(d).pop("resources")),
    ("images", DEPLOYMENT, lambda d: _redis(d).update(image="redis:latest")),
    ("images", DEPLOYMENT, lambda d: _redis(d).update(image="registry.example:5000/redis")),
    ("images", RUNTIME, lambda d: _container(d).update(image="runtime:replace")),
    ("mounts", RUNTIME, lambda d: d["spec"].pop("volumes")),
    ("mounts", SERVICE, lambda d: _init(d)["volumeMounts"][0].update(name="other")),
    (
        "probe-ports",
        RUNTIME,
        lambda d: _container(d)["readinessProbe"]["httpGet"].update(port=8000),
    ),
    ("probe-ports", RUNTIME, lambda d: _container(d).pop("ports")),
    ("selectors", "Service", lambda d: d["spec"].update(selector={"app": "valkey"})),
    (
        "selectors",
        "PodDisruptionBudget",
        lambda d: d["spec"].update(selector={"matchLabels": {"a": "b"}}),
    ),
    ("service-ports", "Service", lambda d: d["spec"]["ports"][0].update(targetPort="remote")),
    ("service-ports", "Service", lambda d: d["spec"].update(ports=[{"port": 6380}])),
    (
        "service-ports",
        "Service",
        lambda d: d["spec"]["ports"].append({"port": 6379, "targetPort": "redis"}),
    ),
    ("network-policies", POLICY, lambda d: _ingress(d).pop("from")),
    ("network-policies", POLICY, lambda d: _ingress(d)["from"].append({})),
    ("network-policies", POLICY, lambda d: _ingress(d).pop("ports")),
    ("network-policies", POLICY, lambda d: _ingress(d)["ports"][0].update(port="http")),
    ("network-policies", POLICY, lambda d: d["spec"].update(policyTypes=["Ingress"])),
    ("network-policies", POLICY, lambda d: d["spec"].update(podSelector={})),
    (
        "closed-stores",
        POLICY,
        lambda d: (
            d["spec"].update(podSelector={"matchLabels": {"remote-client": "true"}}),
            _ingress(d)["ports"][0].update(port="http1"),
        ),
    ),
    ("restricted", DEPLOYMENT, lambda d: _redis(d)["securityContext"].pop("capabilities")),
    ("restricted", DEPLOYMENT, lambda d: _redis(d)["securityContext"].update(runAsUser=0)),
    ("restricted", DEPLOYMENT, lambda d: _redis(d)["securityContext"].update(privileged=True)),
    ("restricted", DEPLOYMENT, lambda d: _redis(d)["ports"][0].update(hostPort=6379)),
    ("restricted", DEPLOYMENT, lambda d: _pod(d).update(hostNetwork=True)),
    (
        "restricted",
        DEPLOYMENT,
        lambda d: _pod(d).update(volumes=[{"name": "data", "hostPath": {"path": "/"}}]),
    ),
    ("restricted", RUNTIME, lambda d: _container(d)["securityContext"].pop("seccompProfile")),
    (
        "restricted",
        RUNTIME,
        lambda d: _container(d)["securityContext"]["capabilities"].update(add=["SYS_ADMIN"]),
    ),
    (
        "restricted",
        MULTINODE,
        lambda d: _worker(d)["containers"][0]["securityContext"].pop("seccompProfile"),
    ),
    ("restricted", SERVICE, lambda d: _init(d)["securityContext"].pop("capabilities")),
    ("pod-seccomp", SERVICE, lambda d: d["spec"]["predictor"].pop("securityContext")),
    ("pod-seccomp", SERVICE, lambda d: d["metadata"].pop("annotations")),
    (
        "pod-seccomp",
        SERVICE,
        lambda d: d["spec"].update(
            canary=[{"predictor": {**d["spec"]["predictor"], "securityContext": {}}}]
        ),
    ),
    ("pod-seccomp", SERVICE, lambda d: d["metadata"]["annotations"].update({MODE: "Serverless"})),
    (
        "read-only-root",
        DEPLOYMENT,
        lambda d: _redis(d)["securityContext"].pop("readOnlyRootFilesystem"),
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
apiVersion: v1
kind: Secret
metadata:
  name: hf-secret
stringData:
  HF_TOKEN: xxxxxx
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
          ports:
            - containerPort: 6379
---
apiVersion: v1
kind: Service
metadata:
  name: redis
spec:
  selector:
    app: redis
  ports:
    - protocol: TCP
      port: 6379
      targetPort: 6379
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
          ports:
            - containerPort: 8080
---
apiVersion: v1
kind: Service
metadata:
  name: lmcache-server
spec:
  selector:
    app: lmcache-server
  ports:
    - protocol: TCP
      port: 8080
      targetPort: 8080
"""


def _sound() -> dict[str, Document]:
    return {document["kind"]: document for document in yaml.safe_load_all(SOUND)}


def test_sound_manifests_trip_no_rule() -> None:
    assert check(list(_sound().values())) == []


@pytest.mark.parametrize(("rule", "kind", "plant"), FAULTS)
def test_planted_fault_trips_its_rule(rule: str, kind: str, plant: Plant) -> None:
    documents = _sound()
    plant(documents[kind])
    planted = list(documents.values())
    if rule == "twice":
        planted.append(documents[kind])
    assert {finding.rule for finding in check(planted)} == {rule}


@pytest.mark.parametrize(
    "resources",
    [
        {"limits": {"nvidia.com/gpu": "2"}},
        {"limits": {"memory": "512Mi"}},
        {"limits": {"nvidia.com/gpu": "0", "nvidia.com/mig-1g.10gb": "1"}},
        {"limits": {"nvidia.com/gpu": "0"}},
        {"requests": {"memory": "512Mi"}},
        {"limits": {"memory": "2Gi"}, "requests": {"memory": "2Gi"}},
    ],
    ids=str,
)
def test_a_service_may_name_a_part_of_its_resources(resources: dict[str, dict[str, str]]) -> None:
    """Each of them is a pod that the API server takes, beside what the runtime names."""
    documents = _sound()
    _asks(documents[SERVICE], **resources)
    assert check(list(documents.values())) == []


def test_every_rule_has_a_planted_fault() -> None:
    assert {rule for rule, _, _ in FAULTS} == set(RULES)


def test_the_guide_as_printed_trips_its_rules() -> None:
    documents = list(yaml.safe_load_all(GUIDE_AS_PRINTED))
    found = {(finding.rule, finding.where) for finding in check(documents)}
    service, redis, server = (
        "InferenceService/huggingface-llama3",
        "Deployment/redis",
        "Deployment/lmcache-server",
    )
    assert found == {
        ("identity", service),
        ("pod-seccomp", service),
        ("quoted-arguments", f"{service} model"),
        ("resource-names", f"{service} model"),
        ("images", f"{redis} redis"),
        ("strings", f"{server} lmcache-server"),
        ("secret-values", "Secret/hf-secret"),
        *(("closed-stores", owner) for owner in (redis, server)),
        *(
            (rule, f"{owner} {container}")
            for rule in ("restricted", "read-only-root", "memory-limit")
            for owner, container in ((redis, "redis"), (server, "lmcache-server"))
        ),
    }
