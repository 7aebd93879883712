"""The *restricted* pod security standard, for the pods that KServe makes of every service of ours.

The rule ``restricted`` looks at what the manifests say; here are the containers that KServe's
webhook adds as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from tests.packaging.kserve_records import RECORDS, names, recorded
from tests.packaging.manifests import ROOT, SETS, documents
from tests.packaging.pods import RUNTIME_KINDS
from tests.packaging.rules.security import weaknesses
from tests.support.cluster import kserve
from tests.support.cluster.controller import mode_of
from tests.support.cluster.strategic_merge import merge

SECURITY = ROOT / "docs" / "operators" / "security.md"
INITIALIZER = "storage-initializer"
# The containers of an oci:// model: KServe gives them a user, and nothing to restrict them by.
OF_AN_IMAGE = {"modelcar", "modelcar-init"}
WITH_A_SERVICE = [
    name for name in SETS if any(d["kind"] == "InferenceService" for d in documents(name))
]


def _pods(name: str, initializer: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    applied = documents(name)
    runtimes = [document for document in applied if document["kind"] in RUNTIME_KINDS]
    for service in (each for each in applied if each["kind"] == "InferenceService"):
        runtime = kserve.choose(runtimes, service)
        if mode_of(service) == "Knative":
            continue  # Knative makes the pod, and may set this itself
        yield kserve.predictor(runtime, service, None, initializer)
        if "workerSpec" in service["spec"]["predictor"]:
            yield kserve.worker(runtime, service)


def _weak(pod: dict[str, Any]) -> dict[str, list[str]]:
    """What each container of a pod misses."""
    found = {
        each["name"]: list(
            weaknesses({**pod.get("securityContext", {}), **each.get("securityContext", {})})
        )
        for each in [*pod.get("initContainers", []), *pod["containers"]]
    }
    return {name: faults for name, faults in found.items() if faults}


@pytest.mark.parametrize("name", WITH_A_SERVICE)
def test_with_kserves_helm_defaults_every_pod_is_restricted(name: str) -> None:
    for pod in _pods(name, kserve.OF_HELM):
        assert set(_weak(pod)) - OF_AN_IMAGE == set()


@pytest.mark.parametrize("name", WITH_A_SERVICE)
def test_with_kserves_kustomize_defaults_the_download_alone_lacks_three_settings(
    name: str,
) -> None:
    lacking = [
        "may run as root (runAsNonRoot)",
        "may gain privileges (allowPrivilegeEscalation)",
        "does not drop all capabilities",
    ]
    for pod in _pods(name, kserve.OF_KUSTOMIZE):
        weak = {each: faults for each, faults in _weak(pod).items() if each not in OF_AN_IMAGE}
        assert weak in ({}, {INITIALIZER: lacking})


def test_what_the_documents_say_to_patch_restricts_the_download() -> None:
    (text,) = re.findall(
        r"```yaml[^\n]*\n(.*?ClusterStorageContainer.*?)```", SECURITY.read_text(), re.S
    )
    container = yaml.safe_load(text)["spec"]["container"]
    pod = next(_pods("example hf", kserve.OF_KUSTOMIZE))
    assert set(_weak(pod)) == {INITIALIZER}
    (initializer,) = pod["initContainers"]
    assert container["name"] == INITIALIZER
    pod["initContainers"] = [merge(initializer, container)]
    assert _weak(pod) == {}


def test_without_the_services_seccomp_profile_the_download_is_refused() -> None:
    pod = next(_pods("example hf", kserve.OF_HELM))
    del pod["securityContext"]
    assert _weak(pod) == {INITIALIZER: ["has no seccomp profile"]}


if RECORDS.is_dir():  # data beside some checkouts, never part of this one

    def test_what_kserve_added_to_recorded_pods() -> None:
        """KServe's own containers, as the cluster had them: by its kustomizations."""
        added = {
            container["name"]: list(weaknesses(container.get("securityContext", {})))
            for name in names()
            for pod in recorded(name)
            if pod["kind"] == "Pod"
            for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
            if container["name"] in {INITIALIZER, *OF_AN_IMAGE}
        }
        assert set(added) == {INITIALIZER, *OF_AN_IMAGE}
        assert {len(faults) for faults in added.values()} == {4}
