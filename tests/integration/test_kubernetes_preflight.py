"""The preflight container, run as the kubelet runs it: user, volumes, memory limit and all."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest

from tests.packaging.manifests import documents
from tests.support.cluster import Cluster
from tests.support.cluster.deployment import SECRETS, of_kind, preflight, start_store

pytestmark = pytest.mark.cluster

SECONDS = 60
TOLD = "termination-log"


def _preflight(cluster: Cluster, name: str, **context: int) -> tuple[int, str]:
    """How the container ends, with more of a securityContext."""
    (service,) = copy.deepcopy(of_kind(cluster.documents, "InferenceService"))
    (container,) = service["spec"]["predictor"]["initContainers"]
    container["securityContext"] |= context
    container["env"].append({"name": "TERMINATION_LOG", "value": f"/tmp/{TOLD}"})  # noqa: S108
    running = preflight(cluster, service, name)
    told = running.pod.volumes["tmp"] / TOLD
    told.touch()
    told.chmod(0o666)  # as the kubelet makes it
    code, output = running.process.wait(SECONDS), running.process.output()
    # What `kubectl describe` shows is what the report says has failed.
    failed = [line.split("  ")[1].strip() for line in output.splitlines() if line[:4] == "FAIL"]
    assert [line.split(":")[0] for line in told.read_text().splitlines()] == failed
    return code, output


def _line(output: str, name: str) -> str:
    (line,) = (line for line in output.splitlines() if re.match(rf"\w+ +{name} ", line))
    return re.sub(r" +", " ", line)


def test_preflight_lets_a_pod_start_or_says_why_not(tmp_path: Path) -> None:
    with Cluster.up(tmp_path, documents("overlay local"), SECRETS) as cluster:
        (config,) = (d for d in cluster.documents if d["metadata"]["name"] == "lmcache-config")
        config["data"]["lmcache_config.yaml"] += "max_local_cpu_size: 8\n"  # the server's, not its
        _, store = start_store(cluster)
        code, output = _preflight(cluster, "healthy")
        assert code == 0, output
        assert "of 2.0 GiB, the container's limit" in _line(output, "memory")
        assert "allkeys-lru" in _line(output, "remote memory")
        assert "by password" in _line(output, "remote login")
        # A user that the image does not know: KServe's for a model from an image, or OpenShift's.
        code, output = _preflight(cluster, "another-user", runAsUser=1010)
        assert code == 0, output

        cluster.secrets = {"lmcache-remote": {"password": "of yesterday"}}
        code, output = _preflight(cluster, "another-password")
        assert code == 1
        assert _line(output, "remote login").startswith("FAIL remote login lmcache-remote:6379")

        store.kill()
        code, output = _preflight(cluster, "no-store")
        assert code == 1
        assert "lmcache-remote:6379 refuses the connection" in _line(output, "remote connection")
