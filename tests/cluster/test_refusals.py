"""What cannot work says so where people look: in ``kubectl describe``."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cluster.conftest import SERVICE, service
from tests.support.kubernetes import Namespace
from tests.support.kubernetes.api import wait
from tests.support.kubernetes.namespace import READY_SECONDS

pytestmark = pytest.mark.kubernetes

CONFIG: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "lmcache-config"},
    "data": {"lmcache_config.yaml": "chunk_sizes: 256\n"},
}


def test_a_wrong_configuration_is_told_in_describe(namespace: Namespace) -> None:
    namespace.apply([CONFIG, service()])
    text = ""

    def told() -> bool:
        nonlocal text
        text = namespace.describe(SERVICE)
        return "problem in the LMCache configuration" in text and "chunk_sizes" in text

    wait(told, READY_SECONDS, lambda: text, pause=5)
    assert not namespace.ready_pods(SERVICE)
