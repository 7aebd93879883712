"""The chart renders what kustomize does, object by object."""

from __future__ import annotations

import re
from typing import Any

import helm_python
import pytest

from tests.packaging import helm, schemas
from tests.packaging.manifests import ROOT, documents
from tests.packaging.pods import Document, label
from tests.packaging.rules import check

TLS = {"enabled": True, "certManager": True}
FULL = {
    "predictorIsolation": {"enabled": True},
    "monitoring": {"enabled": True},
}
KEPT = {"compileCache": {"enabled": True}}

# Values, and the set of manifests that kustomize renders to the same objects.
SAME: dict[str, dict[str, Any]] = {
    "runtimes": {},
    "namespaced": {"runtimes": {"scope": "namespace"}},
    "overlay redis": {"store": {"type": "redis"}},
    "overlay sentinel": {"store": {"type": "redis-sentinel"}},
    "overlay lmcache-server": {"store": {"type": "lmcache-server"}},
    "component valkey": {"store": {"type": "valkey"}},
    "component mooncake": {"store": {"type": "mooncake"}},
    "component tls": {"store": {"type": "redis", "tls": {"enabled": True}}},
    "component any-user": {"store": {"type": "redis-sentinel", "anyUser": True}},
    "component predictor-isolation": {"predictorIsolation": {"enabled": True}},
    "component monitoring": {"monitoring": {"enabled": True}},
    "component compile-cache": KEPT,
    "overlay production": {"store": {"type": "redis", "tls": TLS}, **FULL},
    "all with valkey": {"store": {"type": "valkey", "tls": TLS}, **FULL, **KEPT},
    "all with mooncake": {"store": {"type": "mooncake"}, **FULL, **KEPT},
}
each = pytest.mark.parametrize("name", SAME)


@each
def test_chart_and_kustomize_agree(name: str) -> None:
    ours = _by_name(helm.documents(SAME[name]))
    # Services are their owners' own; the chart brings what they need.
    theirs = [
        document
        for document in documents(name)
        if document["kind"] not in ("InferenceService", "ServiceAccount")
    ]
    assert ours == _by_name(theirs)


@each
def test_rules_and_schemas_find_nothing(name: str) -> None:
    applied = helm.documents(SAME[name])
    assert check(applied) == []
    for version in schemas.KUBERNETES:
        core = [d for d in applied if d["apiVersion"].startswith(schemas.CORE)]
        assert [schemas.core_errors(d, version) for d in core] == [[] for _ in core]


@each
def test_helm_lint_is_content(name: str) -> None:
    assert helm.complaints(SAME[name]) == []


def test_the_charts_version_is_the_packages() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    with helm_python.Chart.load(helm.CHART) as chart:
        assert chart.metadata["version"] == chart.metadata["appVersion"] == version[1]


@each
def test_a_store_changes_no_runtime(name: str) -> None:
    """A release in one namespace must not roll out the services of another."""
    scope = SAME[name].get("runtimes", {})
    plain = {label(d): d for d in helm.documents({"runtimes": scope})}
    ours = {label(d): d for d in helm.documents(SAME[name])}
    assert {key: ours[key] for key in plain} == plain


def test_every_value_reaches_an_object() -> None:
    digest = "sha256:" + "0" * 64
    values: dict[str, Any] = {
        "image": {
            "repository": "registry.example:5000/team/runtime",
            "version": "9.8.7",
            "digests": {"cpu": digest},
            "pullSecrets": ["registry"],
        },
        "runtimes": {
            "gpu": {"cpu": "11", "memory": "111Gi", "gpus": "7"},
            "cpu": {"cpu": "13", "memory": "113Gi"},
        },
        "store": {
            "type": "redis",
            "image": "registry.example/redis:1.2",
            "cpu": "17",
            "memory": "117Gi",
            "config": "chunk_size: 128",
        },
        "predictorIsolation": {"enabled": True, "callers": ["own-gateway"]},
        "compileCache": {"enabled": True, "size": "19Gi", "storageClass": "nfs"},
    }
    text = str(helm.documents(values))
    for expected in (
        "registry.example:5000/team/runtime:9.8.7-gpu",
        f"registry.example:5000/team/runtime@{digest}",
        "'imagePullSecrets': [{'name': 'registry'}]",
        *("'11'", "'111Gi'", "'nvidia.com/gpu': '7'", "'13'", "'113Gi'", "'17'", "'117Gi'"),
        "registry.example/redis:1.2",
        "chunk_size: 128",
        "own-gateway",
        "'storageClassName': 'nfs'",
        "'storage': '19Gi'",
    ):
        assert expected in text
    assert helm.documents({"runtimes": {"enabled": False}}) == []


@pytest.mark.parametrize(
    "values",
    [
        {"stroe": {}},
        {"image": {"version": "latest"}},
        {"image": {"repository": "kserve-lmcache:latest"}},
        {"image": {"digests": {"gpu": "sha256:1"}}},
        {"runtimes": {"scope": "both"}},
        {"image": {"version": 1.0}},  # YAML's 1.0 and 1.10 are no tags any more
        *({"runtimes": {"gpu": {"gpus": each}}} for each in (0, 1.5, "0", "1.5", "1Gi", -1)),
        *(
            {"runtimes": {"cpu": {"cpu": each}}}
            for each in (0, -1, "0", "0.0", "0m", "4Gi", "4 ", "x")
        ),
        *(
            {"runtimes": {"cpu": {"memory": each}}}
            for each in (0, 24, "24", 1.5, "0Gi", "24GiB", "24gi", "100m", "1e3", "24 Gi", "-1Gi")
        ),
        {"store": {"type": "memcached"}},
        {"store": {"memory": "5 GB"}},
        {"store": {"image": "redis"}},
        {"store": {"type": "redis-sentinel", "tls": {"enabled": True}}},
        {"predictorIsolation": {"callers": []}},
        {"compileCache": {"size": "5 GB"}},
    ],
    ids=str,
)
def test_the_schema_refuses_mistakes(values: dict[str, Any]) -> None:
    with pytest.raises(helm_python.HelmError):
        helm.documents(values)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (8, "8"),
        (1.5, "1.5"),
        (0.25, "0.25"),
        ("8", "8"),
        ("1500m", "1500m"),
        (".5", ".5"),
        ("1e1", "1e1"),
    ],
)
def test_cores_are_any_quantity_of_kubernetes(given: object, shown: str) -> None:
    assert _quantities("cpu", given) == {shown}


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("24Gi", "24Gi"),
        ("24Pi", "24Pi"),
        ("1e9", "1e9"),
        ("1E9", "1E9"),
        ("2.5e10", "2.5e10"),
        (1e9, "1000000000"),  # YAML reads 1e9 so
        (25769803776, "25769803776"),
        ("25769803776", "25769803776"),
        ("1.5Gi", "1.5Gi"),
        ("24000000Ki", "24000000Ki"),
        ("16G", "16G"),
    ],
)
def test_memory_is_any_quantity_of_kubernetes(given: object, shown: str) -> None:
    assert _quantities("memory", given) == {shown}


@pytest.mark.parametrize("given", [2, "2"])
def test_gpus_are_a_number_or_a_string(given: object) -> None:
    (runtime,) = (
        d
        for d in helm.documents({"runtimes": {"gpu": {"gpus": given}}})
        if d["metadata"]["name"] == "kserve-lmcache"
    )
    assert runtime["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"


def _quantities(name: str, given: object) -> set[str]:
    """What the runtime for CPUs and a Redis get of a quantity."""
    values = {"runtimes": {"cpu": {name: given}}, "store": {"type": "redis", name: given}}
    applied = {label(document): document for document in helm.documents(values)}
    runtime = applied["ClusterServingRuntime/kserve-lmcache-cpu"]
    store = applied["StatefulSet/lmcache-remote"]["spec"]["template"]
    found = [runtime["spec"]["containers"][0]["resources"]["limits"]]
    found += [each["resources"]["requests"] for each in store["spec"]["containers"]]
    return {str(each[name]) for each in found if name in each}


def _by_name(applied: list[Document]) -> dict[str, Document]:
    found = {label(document): document for document in applied}
    assert len(found) == len(applied)
    return found
