"""The stores of the manifests: real servers with the manifests' own files, user and password."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest
import redis

from tests.packaging.manifests import documents
from tests.support.cluster import Cluster, images
from tests.support.cluster.deployment import (
    PASSWORD,
    SECRETS,
    inner_pid,
    of_kind,
    preflight,
    start_store,
)
from tests.support.stores.binaries import script

pytestmark = pytest.mark.cluster

GIB = 2**30


@pytest.mark.parametrize("name", ["overlay redis", "component valkey"])
def test_store_runs_as_the_manifest_says(name: str, tmp_path: Path) -> None:
    with Cluster.up(tmp_path, documents(name), SECRETS) as cluster:
        _, store = start_store(cluster)
        with store.client() as client:
            settings = client.config_get("*")
            info = client.info()
        assert settings["maxmemory-policy"] == "allkeys-lru"
        assert int(settings["maxmemory"]) == 4 * GIB
        assert settings["save"] == ""
        assert settings["appendonly"] == "no"
        assert settings["lazyfree-lazy-eviction"] == "yes"
        assert info["maxmemory"] == 4 * GIB
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(store.host, password=PASSWORD + " ").ping()
        pid = inner_pid(store)
        (uid,) = {line.split()[1] for line in _status(pid, "Uid")}
        (capabilities,) = {line.split()[1] for line in _status(pid, "CapBnd")}
        assert (uid, int(capabilities, 16)) == ("999", 0)
        # The probe: whatever it answers, it answers.
        probe = [script("redis-cli"), "-h", store.host, "ping"]
        answer = subprocess.run(probe, capture_output=True, text=True, check=True)
        assert "NOAUTH" in answer.stdout


@pytest.mark.parametrize("name", ["overlay redis", "component valkey"])
def test_store_runs_as_the_user_that_a_cluster_gives_it(name: str, tmp_path: Path) -> None:
    """As OpenShift does it where components/any-user has left the user out."""
    with Cluster.up(tmp_path, documents(name), SECRETS) as cluster:
        (workload,) = of_kind(cluster.documents, "StatefulSet")
        context = workload["spec"]["template"]["spec"]["securityContext"]
        del context["runAsGroup"]
        context["runAsUser"] = 1000670000
        _, store = start_store(cluster)
        with store.client() as client:
            assert client.set("key", "value")
            assert client.get("key") == b"value"
        (uid,) = {line.split()[1] for line in _status(inner_pid(store), "Uid")}
        assert uid == "1000670000"


def test_store_without_a_password_does_not_start(tmp_path: Path) -> None:
    secrets = {"lmcache-remote": {"password": ""}}
    with Cluster.up(tmp_path, documents("overlay redis"), secrets) as cluster:
        (workload,) = (d for d in cluster.documents if d["kind"] == "StatefulSet")
        pod = cluster.pod("lmcache-remote-0", workload["spec"]["template"]["spec"])
        running = cluster.start(pod, "store", images.redis())
        assert running.process.wait(10) == 1
        assert "The key password of the Secret lmcache-remote is empty" in running.process.output()


def test_lmcache_server_is_found_by_a_preflight(tmp_path: Path) -> None:
    with Cluster.up(tmp_path, documents("all with lmcache-server")) as cluster:
        (workload,) = of_kind(cluster.documents, "StatefulSet")
        (service,) = of_kind(cluster.documents, "InferenceService")
        template = workload["spec"]["template"]["spec"]
        pod = cluster.pod("lmcache-remote-0", template, "lmcache-remote")
        server = cluster.start(pod, "store", images.ours())
        server.process.wait_until(lambda: _opens(pod.address, 65432), 60)
        checked = preflight(cluster, service, "preflight")
        assert checked.process.wait(60) == 0, checked.process.output()
        assert "LMCache's server answers lookups" in checked.process.output()


def _opens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def _status(pid: int, field: str) -> list[str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return [line for line in lines if line.startswith(f"{field}:")]
