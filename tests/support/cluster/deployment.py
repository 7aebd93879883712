"""What a set of manifests comes to in a cluster: a store, and replicas of a service."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.cluster import images, kserve
from tests.support.cluster.cluster import Cluster
from tests.support.cluster.container import ContainerProcess, Pod, Running
from tests.support.processes import is_healthy
from tests.support.server import SMALL, START_SECONDS, Server
from tests.support.stores import Store

Document = dict[str, Any]

PASSWORD = 'a "password" with \\ and $HOME #'
SECRETS = {"lmcache-remote": {"password": PASSWORD}, "hf-secret": {"HF_TOKEN": "hf_none"}}
RUNTIME_KINDS = ("ClusterServingRuntime", "ServingRuntime")
MEMORY = "5Gi"
CONTAINER = "kserve-container"


@dataclass
class Replica(Server):
    """A server in a pod."""

    pod: Pod | None = None

    def holds(self, probe: str) -> bool:
        """Whether a probe of its container succeeds, asked once as the kubelet asks it."""
        assert self.pod is not None
        container = self.pod.container(CONTAINER)
        ports = {each["name"]: each["containerPort"] for each in container["ports"]}
        action = container[probe]["httpGet"]
        port = ports.get(action["port"], action["port"])
        url = f"http://{self.host}:{port}{action['path']}"
        return is_healthy(url, container[probe]["timeoutSeconds"])


def of_kind(documents: Sequence[Document], *kinds: str) -> list[Document]:
    return [document for document in documents if document["kind"] in kinds]


def start_store(cluster: Cluster, memory: str | None = None) -> tuple[Pod, Store]:
    """The first pod of the store's StatefulSet, as a Redis client sees it."""
    (workload,) = of_kind(cluster.documents, "StatefulSet")
    pod = cluster.pod("lmcache-remote-0", workload["spec"]["template"]["spec"], "lmcache-remote")
    return pod, start_redis(cluster, pod, memory)


def start_redis(cluster: Cluster, pod: Pod, memory: str | None = None) -> Store:
    """Redis or Valkey in a pod of the store."""
    words = [*pod.container("store")["command"], *pod.container("store")["args"]]
    image = images.valkey() if "valkey-server" in words else images.redis()
    running = cluster.start(pod, "store", image, memory)
    store = Store(pod.address, 6379, running.process, password=PASSWORD)
    store.wait_until_it_answers()
    return store


def inner_pid(store: Store) -> int:
    """The server's process, as this machine sees it."""
    process = store.own_process()
    assert isinstance(process, ContainerProcess)
    return process.inner.pid


def preflight(cluster: Cluster, service: Document, name: str) -> Running:
    """The init container of a replica; it has not ended yet."""
    pod = cluster.pod(name, predictor(cluster, service))
    return cluster.start(pod, "preflight", images.ours())


def start_replica(
    cluster: Cluster, service: Document, name: str, model_name: str | None = None
) -> Replica:
    """A replica of a service; it is not ready yet."""
    pod = cluster.pod(name, predictor(cluster, service))
    pod.container(CONTAINER)["args"] += SMALL
    if (cluster.directory / "hub").is_dir():
        download(cluster, pod, CONTAINER, "tmp")
    running = cluster.start(pod, CONTAINER, images.ours(), MEMORY)
    name = model_name or service["metadata"]["name"]
    return Replica(8080, name, running.process, pod.address, pod)


def wait_until_ready(server: Server) -> None:
    server.process.wait_until(server.is_ready, START_SECONDS)


def predictor(cluster: Cluster, service: Document) -> dict[str, Any]:
    """The pod of a service's replica."""
    runtimes = of_kind(cluster.documents, *RUNTIME_KINDS)
    return kserve.predictor(kserve.choose(runtimes, service), service)


def claim_with(directory: Path, service: Document, model: Path) -> Path:
    """A claim's volume that has a model where the service looks for it."""
    uri = kserve.storage_uri(service)
    assert uri is not None
    shutil.copytree(model, directory / uri.removeprefix("pvc://").partition("/")[2])
    directory.chmod(0o755)
    return directory


def download(cluster: Cluster, pod: Pod, container: str, volume: str) -> None:
    """What the hub has lies in a volume of the pod, as if it had been downloaded."""
    _lay(cluster.directory / "hub", pod.volumes[volume] / "hf")
    pod.container(container)["env"].append({"name": "HF_HUB_OFFLINE", "value": "1"})


def _lay(source: Path, target: Path) -> None:
    """A folder's files at another place, in folders that every user may write to."""
    shutil.copytree(source, target, copy_function=os.link)
    for folder, _, _ in os.walk(target):
        Path(folder).chmod(0o777)


def hub_cache(directory: Path, name: str, model: Path) -> None:
    """The hub's cache with a model under a hub name."""
    repository = directory / f"hub/hub/models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0" * 40)
    for file in model.iterdir():
        shutil.copy(file, snapshot / file.name)
