"""What docs/operators/upgrades.md says of KServe, held to what KServe makes of services.

The model of the controller is held to the real one in ``test_kserve_records.py``.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from tests.packaging.kserve_records import RECORDS, names, recorded
from tests.packaging.manifests import ROOT, documents
from tests.packaging.pods import RUNTIME_KINDS, Document
from tests.packaging.upgrades import annotations
from tests.support.cluster.controller import SOURCE, objects

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += [*(ROOT / "servingruntime").rglob("*.md"), *(ROOT / "servingruntime").rglob("*.yaml")]
# Set by KServe itself; the webhook adds the last two to pods.
OF_KSERVE = {
    SOURCE,
    "serving.kserve.io/deploymentMode",
    "serving.kserve.io/enable-metric-aggregation",
    "serving.kserve.io/enable-prometheus-scraping",
}


def _pods(applied: list[Document]) -> dict[str, Any]:
    """The templates of all Deployments: pods are replaced where one changes."""
    return {
        each["metadata"]["name"]: each["spec"]["template"]
        for each in objects(applied, "models")
        if each["kind"] == "Deployment"
    }


def _service(applied: list[Document]) -> Document:
    (service,) = (each for each in applied if each["kind"] == "InferenceService")
    return service


def test_the_documented_annotations_reach_the_pods() -> None:
    before = _pods(documents("example hf"))
    assert set(annotations()) == {
        "kserve-lmcache/restarted-at",
        "serving.kserve.io/disable-auto-update",
    }
    for key in annotations():
        applied = documents("example hf")
        _service(applied)["metadata"]["annotations"][key] = "1"
        after = _pods(applied)
        assert after["qwen-predictor"]["metadata"]["annotations"][key] == "1"
        assert after != before  # which is a rollout: of the documents' "hold back", too


def test_a_changed_runtime_replaces_the_pods_of_every_service() -> None:
    applied = documents("example two-replicas")
    another = copy.deepcopy(_service(applied))
    another["metadata"]["name"] = "another"
    applied.append(another)
    before = _pods(applied)
    for runtime in (each for each in applied if each["kind"] in RUNTIME_KINDS):
        runtime["spec"]["containers"][0]["image"] = "kserve-lmcache:0.2.0-gpu"
    after = _pods(applied)
    assert set(before) == {"qwen-predictor", "another-predictor"}
    assert all(after[name] != before[name] for name in before)


def test_a_changed_config_map_replaces_no_pod() -> None:
    applied = documents("example own-config")
    before = _pods(applied)
    (config,) = (each for each in applied if each["kind"] == "ConfigMap")
    config["data"] = {"lmcache_config.yaml": "chunk_size: 128"}
    assert _pods(applied) == before


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_page_restarts_a_deployment(page: Any) -> None:
    commands = re.findall(r"kubectl rollout restart (\w*)", page.read_text())
    assert set(commands) <= {"", "statefulset"}, page


def test_the_pages_that_restart_something_are_read() -> None:
    assert any("kubectl rollout restart statefulset" in page.read_text() for page in PAGES)


if RECORDS.is_dir():  # data beside some checkouts, never part of this one

    def _annotations(record: str, kind: str) -> list[dict[str, str]]:
        """Of the record's objects of a kind that KServe made."""
        return [
            each["metadata"]["annotations"]
            for each in recorded(record)
            if each["kind"] == kind and "component" in each["metadata"].get("labels", {})
        ]

    with_a_service = [
        name for name in names() if any(d["kind"] == "InferenceService" for d in recorded(name))
    ]

    @pytest.mark.parametrize("name", with_a_service)
    def test_the_cluster_copied_the_annotations_of_services(name: str) -> None:
        own = {
            key: value
            for key, value in _service(recorded(name))["metadata"]["annotations"].items()
            if key != "modelFormat"
        }
        made = [*_annotations(name, "Deployment"), *_annotations(name, "Pod")]
        assert made
        assert all(own.items() <= each.items() for each in made)

    @pytest.mark.parametrize("name", with_a_service)
    def test_the_cluster_kept_no_foreign_annotation_on_a_deployment(name: str) -> None:
        own = set(_service(recorded(name))["metadata"]["annotations"]) | OF_KSERVE
        of_runtimes = {
            key for each in documents("runtimes") for key in each["spec"].get("annotations", {})
        }
        # Kubernetes itself sets deployment.kubernetes.io/revision; the recorder took that out.
        for each in _annotations(name, "Deployment"):
            assert set(each) <= own | of_runtimes
