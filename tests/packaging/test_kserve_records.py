"""Our model of KServe's controller against what the real one made of our manifests.

Where the records are absent, what is left are the tests of the comparison itself, and
``test_kserve_merge.py``.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from tests.packaging.kserve_records import (
    RECORDS,
    Difference,
    compare,
    differences,
    modelled,
    names,
    recorded,
)

# Why a value of a record is not the same in our model: the record, the object and the way to the
# value, and the reason. Each must be needed.
REASONS = [
    (
        ".*",
        r".*\.(containers|initContainers)\[\S+\]\.securityContext\.runAs(User|Group)",
        "the manifests name neither user nor group of our containers any more",
    ),
    (
        ".*",
        r"(StatefulSet|Pod)/lmcache-remote\S*\.securityContext\.runAs(User|Group)",
        "the stores name their user once for the whole pod since",
    ),
    (
        ".*",
        r".*\.(spec|predictor)\.securityContext\.seccompProfile\.type",
        "the services have set it since, for the containers that KServe adds",
    ),
    (
        ".*",
        r".*\.annotations\.serving\.knative\.dev/progress-deadline",
        "the runtimes have named the patience of serverless services since",
    ),
    (
        ".*",
        r"(Deployment|Service|InferenceService|ClusterServingRuntime)/.*\.resources\.requests\..*",
        "the runtimes have named limits alone since, which a pod takes as its requests",
    ),
    (
        "component-mooncake",
        r".*\.env\[(MOONCAKE_HOSTNAME|LMCACHE_EXTRA_CONFIG)\]\..*",
        "the component changed the cluster's runtimes then",
    ),
    (
        "canary-standard|model-oci",
        r".*\.metadata\.ownerReferences|InferenceService/.*\.status\..*",
        "the recorder left owners and status out of these two",
    ),
    ("canary-standard", "Pod/.*", "no pod was recorded"),
    (
        "canary-standard",
        r"Deployment/qwen-predictor\.spec\.replicas",
        "the autoscaler had raised it to minReplicas by then",
    ),
    (
        "component-mooncake|component-preflight",
        r".*\[(memory|store|preflight)\]\.image",
        "the component was applied without components/image, which names the image",
    ),
    (
        ".*",
        r"Pod/lmcache-remote-\d\.metadata\.labels\.controller-revision-hash",
        "a hash of the StatefulSet's template that only its controller knows",
    ),
    ("overlay-sentinel", r"Service/.*\.clusterIP", "the recorder took addresses out, None too"),
    (
        "example-canary",
        "InferenceService/qwen",
        "the cluster had no Knative: the Service alone is what KServe would have made",
    ),
    (
        "example-multinode",
        "Deployment/llama-405b-predictor-worker|Service/llama-405b-head-1",
        "KServe 0.20 deletes them at every reconcile (kserve#6113)",
    ),
    ("example-s3", "Pod/isvc.llama-predictor", "no pod was recorded, and nobody noted why"),
    (
        "overlay-production",
        "Pod/isvc.llama-predictor",
        "the overlay lacked its ServiceAccount then, so that no pod could be made",
    ),
    (
        "overlay-production",
        r".*\.env\[KSERVE_LMCACHE_(TERMINATION_GRACE_PERIOD|DRAIN_DELAY|DRAIN_TIMEOUT)\]\..*",
        "the service has told its server the grace period since",
    ),
    (
        ".*",
        r".*\.(env\[KSERVE_LMCACHE_COMPILE_CACHE_DIR\]|volumeMounts\[/var/cache/kserve-lmcache\]|volumes\[compiled\]).*",
        "the runtimes have kept compiled code since",
    ),
]


def test_a_difference_is_found() -> None:
    pod: dict[str, Any] = {
        "kind": "Pod",
        "metadata": {"labels": {"app": "a"}},
        "spec": {
            "initContainers": [{"name": "first"}, {"name": "second"}],
            "containers": [{"name": "c", "env": [{"name": "A", "value": "1"}, {"name": "B"}]}],
        },
    }
    other = copy.deepcopy(pod)
    spec = other["spec"]
    spec["containers"][0]["env"].reverse()
    assert list(compare("r", [pod], [other])) == []
    spec["initContainers"].reverse()
    spec["containers"][0]["env"][1]["value"] = "2"
    order, value = compare("r", [pod], [other])
    path = "Pod/a.spec.containers[c].env[A].value"
    assert value == Difference("r", path, "1", "2") or order == Difference("r", path, "1", "2")
    assert {order.path, value.path} == {path, "Pod/a.spec.initContainers.order"}
    (absent,) = compare("r", [pod], [])
    assert (absent.path, absent.theirs) == ("Pod/a", "absent")


def _reasons(difference: Difference) -> list[int]:
    return [
        number
        for number, (record, path, _) in enumerate(REASONS)
        if re.fullmatch(record, difference.record) and re.fullmatch(path, difference.path)
    ]


if RECORDS.is_dir():  # data beside some checkouts, never part of this one

    @pytest.mark.parametrize("name", names())
    def test_no_difference_is_unexplained(name: str) -> None:
        assert [each for each in differences(name) if not _reasons(each)] == []

    def test_every_reason_is_needed() -> None:
        found = {
            number for name in names() for each in differences(name) for number in _reasons(each)
        }
        assert [REASONS[number] for number in range(len(REASONS)) if number not in found] == []

    def test_the_records_hold_what_is_compared() -> None:
        assert len(names()) > 20
        assert sum(len(recorded(name)) for name in names()) > 100
        assert all(modelled(name) for name in names())
