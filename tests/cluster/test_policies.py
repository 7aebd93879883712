"""The NetworkPolicies, where a network plugin enforces them."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.cluster.conftest import SERVICE, service, small_store
from tests.support.kubernetes import Namespace
from tests.support.kubernetes.api import wait
from tests.support.kubernetes.load import POD, pod_of

pytestmark = pytest.mark.kubernetes

CALLER = {"kserve-lmcache/api-client": "true"}
NEIGHBOUR = {"app": "neighbour"}
# A network plugin may open or shut the way some seconds after a pod's start.
CONNECT = """
import socket, sys, time
time.sleep(5)
for _ in range(5):
    try:
        socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)
        sys.exit(0)
    except OSError as error:
        print(error, flush=True)
        time.sleep(2)
sys.exit(1)
"""


@pytest.fixture(scope="module")
def isolated(namespace: Namespace) -> Namespace:
    """A replica and a store, with all policies."""
    namespace.secret("lmcache-remote", password=uuid.uuid4().hex)
    parts = ["redis", "predictor-isolation", "preflight-cpu"]
    namespace.apply([service()], parts, [small_store()])
    namespace.wait_until_ready(SERVICE)
    return namespace


@pytest.mark.parametrize(
    ("labels", "host", "port", "reaches"),
    [
        (CALLER, f"{SERVICE}-predictor", 80, True),
        (NEIGHBOUR, f"{SERVICE}-predictor", 80, False),
        (CALLER, "lmcache-remote", 6379, False),
        (NEIGHBOUR, "lmcache-remote", 6379, False),
    ],
)
def test_who_reaches_whom(
    isolated: Namespace, labels: dict[str, str], host: str, port: int, reaches: bool
) -> None:
    name = f"{host}.{isolated.name}.svc"
    pod = pod_of(isolated.image, ["-c", CONNECT, name, str(port)], labels)
    assert _ends_well(isolated, pod) is reaches


def test_a_predictor_reaches_its_store(isolated: Namespace) -> None:
    (pod,) = isolated.ready_pods(SERVICE)
    report = isolated.in_container(pod, "kserve-lmcache", "doctor")
    assert "remote connection" in report
    assert "FAIL" not in report


def _ends_well(namespace: Namespace, pod: dict[str, Any]) -> bool:
    """Whether a pod's program ends without an error."""
    namespace.api.create("Pod", namespace.name, pod)
    try:

        def phase() -> str:
            found = namespace.api.get("Pod", namespace.name, POD) or {}
            now = str(found.get("status", {}).get("phase"))
            return now if now in ("Succeeded", "Failed") else ""

        return bool(wait(phase, 300) == "Succeeded")
    finally:
        namespace.api.delete("Pod", namespace.name, POD)
        wait(lambda: namespace.api.get("Pod", namespace.name, POD) is None, 120)
