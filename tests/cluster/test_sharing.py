"""Two replicas and a store, as the overlay for a laptop has them; and what happens to them."""

from __future__ import annotations

import time
import uuid

import pytest

from tests.cluster.conftest import SERVICE, cached_tokens, chat, long_prompt, service, small_store
from tests.packaging.upgrades import annotation, annotations
from tests.support.kubernetes import Load, Namespace
from tests.support.kubernetes.api import wait
from tests.support.kubernetes.namespace import SERVICE_LABEL

pytestmark = pytest.mark.kubernetes

STORE = "lmcache-remote-0"
RUNTIME = "kserve-lmcache-cpu"


@pytest.fixture(scope="module")
def replicas(namespace: Namespace) -> list[str]:
    """The names of two replicas that are ready."""
    namespace.secret("lmcache-remote", password=uuid.uuid4().hex)
    parts = ["redis", "preflight-cpu"]
    namespace.apply([service(replicas=2)], parts, [small_store()])
    return namespace.wait_until_ready(SERVICE, replicas=2)


def test_the_second_replica_takes_what_the_first_computed(
    namespace: Namespace, replicas: list[str]
) -> None:
    first, second = namespace.ready_pods(SERVICE)
    prompt = long_prompt(uuid.uuid4().hex)
    stored = chat(namespace, first, prompt)
    assert cached_tokens(stored) == 0
    time.sleep(5)  # writes are in the background
    loaded = chat(namespace, second, prompt)
    print(f"{cached_tokens(loaded)} of {loaded['usage']['prompt_tokens']} tokens from the first")
    assert cached_tokens(loaded) >= 1024
    assert loaded["choices"][0]["message"] == stored["choices"][0]["message"]


def test_config_beside_a_loaded_server_ends_nothing(
    namespace: Namespace, replicas: list[str]
) -> None:
    before = namespace.restarts(SERVICE)
    with Load.on(namespace, SERVICE, SERVICE) as load:
        for pod in namespace.ready_pods(SERVICE):
            began = time.monotonic()
            printed = namespace.in_container(pod, "kserve-lmcache", "config")
            assert "remote_url" in printed
            assert "of the running server" in printed
            print(f"config: {time.monotonic() - began:.1f} s")
            began = time.monotonic()
            report = namespace.in_container(pod, "kserve-lmcache", "doctor")
            assert "of the running server" in report
            print(f"doctor: {time.monotonic() - began:.1f} s")
        load.wait_for_more(20)
    assert (load.failed, namespace.restarts(SERVICE)) == (0, before), load.failures


@pytest.mark.parametrize("which", ["store", "predictor"])
def test_no_request_is_lost_with_a_pod(
    namespace: Namespace, replicas: list[str], which: str
) -> None:
    pods = namespace.ready_pods(SERVICE)
    gone = STORE if which == "store" else pods[0]
    with Load.on(namespace, SERVICE, SERVICE) as load:
        load.wait_for_more(10)
        namespace.api.delete("Pod", namespace.name, gone)
        load.wait_for_more(20)
        namespace.wait_until_ready(SERVICE, replicas=2)
        load.wait_for_more(20)
    print(f"{which}: {load.failed} of {load.sent} failed")
    assert load.failed == 0, load.failures


def test_the_documented_restart_replaces_the_pods_and_loses_no_request(
    namespace: Namespace, replicas: list[str]
) -> None:
    old = namespace.ready_pods(SERVICE)
    with Load.on(namespace, SERVICE, SERVICE) as load:
        load.wait_for_more(10)
        new = f"{annotation('restarted')}={int(time.time())}"
        words = ("annotate", "inferenceservice", SERVICE, "--overwrite", new)
        namespace.api.kubectl(*words, "--namespace", namespace.name)
        namespace.wait_for_new_pods(SERVICE, old)
        load.wait_for_more(20)
    print(f"restart: {load.failed} of {load.sent} failed")
    assert load.failed == 0, load.failures


def test_a_restart_of_the_deployment_is_taken_back(
    namespace: Namespace, replicas: list[str]
) -> None:
    old = namespace.ready_pods(SERVICE)
    name = f"deployment/{SERVICE}-predictor"
    namespace.api.kubectl("rollout", "restart", name, "--namespace", namespace.name)

    def taken_back() -> bool:
        found = namespace.api.get("Deployment", namespace.name, f"{SERVICE}-predictor")
        assert found is not None
        annotations = found["spec"]["template"]["metadata"]["annotations"]
        return "kubectl.kubernetes.io/restartedAt" not in annotations

    wait(taken_back, 60)
    time.sleep(20)
    wait(lambda: namespace.ready_pods(SERVICE) == old, 300)


def test_an_upgrade_replaces_the_pods_and_loses_no_request(
    namespace: Namespace, replicas: list[str]
) -> None:
    old = namespace.ready_pods(SERVICE)
    with Load.on(namespace, SERVICE, SERVICE) as load:
        load.wait_for_more(10)
        _change_runtime(namespace)
        namespace.wait_for_new_pods(SERVICE, old)
        load.wait_for_more(20)
    print(f"upgrade: {load.failed} of {load.sent} failed")
    assert load.failed == 0, load.failures


def test_a_service_that_is_held_back_keeps_its_pods(
    namespace: Namespace, replicas: list[str]
) -> None:
    old = namespace.ready_pods(SERVICE)
    key = annotation("auto-update")
    change = {"metadata": {"annotations": {key: annotations()[key]}}}
    namespace.api.patch("InferenceService", namespace.name, SERVICE, change)
    held = namespace.wait_for_new_pods(SERVICE, old)  # the annotation is a change itself
    namespace.wait_until_ready(SERVICE, replicas=2)
    _change_runtime(namespace)
    time.sleep(60)
    assert namespace.ready_pods(SERVICE) == held
    assert len(namespace.api.find("Pod", namespace.name, f"{SERVICE_LABEL}={SERVICE}")) == 2


def _change_runtime(namespace: Namespace) -> None:
    """What an upgrade comes to: the runtime is another one. An annotation of its pods is enough."""
    change = {"spec": {"annotations": {"kserve-lmcache/tested": uuid.uuid4().hex}}}
    namespace.api.patch("ServingRuntime", namespace.name, RUNTIME, change)
