"""What cannot work says so where people look: in ``kubectl describe``."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cluster.conftest import SERVICE, service
from tests.support.kubernetes import Namespace
from tests.support.kubernetes.api import wait
from tests.support.kubernetes.namespace import READY_SECONDS

pytestmark = pytest.mark.kubernetes

PREFLIGHTED, SMALL = "preflighted", "small"


def config(text: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "lmcache-config"},
        "data": {"lmcache_config.yaml": text},
    }


def wait_until_told(namespace: Namespace, name: str, *words: str) -> None:
    """Wait until ``kubectl describe`` shows these words; no pod of the service is ready then."""
    text = ""

    def told() -> bool:
        nonlocal text
        text = namespace.describe(name)
        return all(word in text for word in words)

    wait(told, READY_SECONDS, lambda: text, pause=5)
    assert not namespace.ready_pods(name)


def test_a_wrong_configuration_is_told_in_describe(namespace: Namespace) -> None:
    namespace.apply([config("chunk_sizes: 256\n"), service()])
    wait_until_told(namespace, SERVICE, "problem in the LMCache configuration", "chunk_sizes")


def test_a_failed_preflight_is_told_in_describe(namespace: Namespace) -> None:
    resources = [config("remote_url: redis://127.0.0.1:1\n"), service(PREFLIGHTED)]
    namespace.apply(resources, ["preflight-cpu"])
    wait_until_told(namespace, PREFLIGHTED, "remote connection: 127.0.0.1:1 refuses the connection")


def test_too_little_memory_is_told_in_describe(namespace: Namespace) -> None:
    small = service(SMALL)
    resources = {"requests": {"memory": "2Gi"}, "limits": {"memory": "2Gi"}}
    small["spec"]["predictor"]["model"]["resources"] = resources
    namespace.apply([small])
    wait_until_told(namespace, SMALL, "the server needs ", "Raise the memory limit")
