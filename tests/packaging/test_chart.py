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
    "component predictor-isolation": {"predictorIsolation": {"enabled": True}},
    "component monitoring": {"monitoring": {"enabled": True}},
    "overlay production": {"store": {"type": "redis", "tls": TLS}, **FULL},
    "all with valkey": {"store": {"type": "valkey", "tls": TLS}, **FULL},
    "all with mooncake": {"store": {"type": "mooncake"}, **FULL},
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
        {"runtimes": {"gpu": {"gpus": 1}}},
        {"store": {"type": "memcached"}},
        {"store": {"memory": "5 GB"}},
        {"store": {"image": "redis"}},
        {"store": {"type": "redis-sentinel", "tls": {"enabled": True}}},
        {"predictorIsolation": {"callers": []}},
    ],
    ids=str,
)
def test_the_schema_refuses_mistakes(values: dict[str, Any]) -> None:
    with pytest.raises(helm_python.HelmError):
        helm.documents(values)


def _by_name(applied: list[Document]) -> dict[str, Document]:
    found = {label(document): document for document in applied}
    assert len(found) == len(applied)
    return found
