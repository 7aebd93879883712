"""Whatever a manifest refers to is in it, or in a list above the command that applies it.

The list is run: ``kubectl create --dry-run=client`` says what its commands would create.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.packaging import helm
from tests.packaging.manifests import (
    COMPONENTS,
    GUIDE,
    LLM,
    NEEDS,
    RUNTIMES,
    SETS,
    documents,
    example,
)
from tests.packaging.pods import Document, label
from tests.packaging.references import created, needed
from tests.packaging.test_chart import SAME

KUSTOMIZATION = "kustomization.yaml"


def _lists(name: str) -> str:
    """The texts that say what to create before a set is applied."""
    kind, _, rest = name.partition(" ")
    if name == "guide":
        return (GUIDE / KUSTOMIZATION).read_text()
    if kind == "overlay":
        return (RUNTIMES / "overlays" / rest / KUSTOMIZATION).read_text()
    if kind == "example":
        return example(rest).read_text()
    if kind == "llm" and rest:
        return (LLM / "examples" / f"{rest}.yaml").read_text()
    if kind == "component":
        return "".join(map(_of_component, [*NEEDS.get(rest, []), rest]))
    if kind == "all":
        return _of_component(rest.removeprefix("with "))
    return ""


def _of_component(name: str) -> str:
    """Of a component, and of those that it is made of."""
    text = (COMPONENTS / name / KUSTOMIZATION).read_text()
    below = [each.name for each in COMPONENTS.iterdir() if f"- ../{each.name}\n" in text]
    return text + "".join(map(_of_component, below))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The files of a certificate, which some commands read."""
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (tmp_path / name).write_text("x")
    return tmp_path


def _lacking(applied: list[Document], beside: list[Document]) -> dict[str, Any]:
    """What nobody creates, and the keys of it that nobody sets."""
    there = {label(each): {*each.get("data", {}), *each.get("stringData", {})} for each in beside}
    return {
        name: sorted(keys - there.get(name, set()))
        for name, keys in needed(applied).items()
        if name not in there or keys - there[name]
    }


@pytest.mark.parametrize("name", SETS)
def test_nothing_is_missing_where_the_list_was_followed(name: str, files: Path) -> None:
    assert _lacking(documents(name), created(_lists(name), files)) == {}


@pytest.mark.parametrize("name", [n for n in SETS if not n.startswith(("all", "component"))])
def test_a_list_asks_for_nothing_that_is_not_needed(name: str, files: Path) -> None:
    asked = {label(each) for each in created(_lists(name), files)}
    assert asked == set(needed(documents(name)))


@pytest.mark.parametrize("name", SAME)
def test_the_charts_values_name_what_is_needed(name: str, files: Path) -> None:
    values = (RUNTIMES / "chart" / "values.yaml").read_text()
    assert _lacking(helm.documents(SAME[name]), created(values, files)) == {}


def test_the_production_overlay_has_its_account() -> None:
    applied = documents("overlay production")
    assert "ServiceAccount/huggingface" in {label(each) for each in applied}
    without = [each for each in applied if each["kind"] != "ServiceAccount"]
    assert "ServiceAccount/huggingface" in needed(without)


def test_every_kind_of_reference_is_found() -> None:
    pod = {
        "imagePullSecrets": [{"name": "pull"}],
        "serviceAccountName": "account",
        "volumes": [
            {"configMap": {"name": "file"}},
            {"secret": {"secretName": "mounted", "items": [{"key": "a", "path": "a"}]}},
            {"persistentVolumeClaim": {"claimName": "claim"}},
            {"projected": {"sources": [{"secret": {"name": "projected"}}]}},
            {"configMap": {"name": "optional", "optional": True}},
        ],
        "initContainers": [{"envFrom": [{"configMapRef": {"name": "environment"}}]}],
        "containers": [
            {
                "env": [
                    {"valueFrom": {"secretKeyRef": {"name": "variable", "key": "b"}}},
                    {"valueFrom": {"configMapKeyRef": {"name": "setting", "key": "c"}}},
                ],
                "envFrom": [{"secretRef": {"name": "all"}}],
            }
        ],
    }
    claims = [{"spec": {"storageClassName": "fast"}}]
    applied = [
        {
            "kind": "StatefulSet",
            "spec": {"template": {"spec": pod}, "volumeClaimTemplates": claims},
        },
        {"kind": "InferenceService", "spec": {"predictor": {"model": {"storageUri": "pvc://m/a"}}}},
        {"kind": "ServiceAccount", "secrets": [{"name": "token"}]},
    ]
    assert needed(applied) == {
        **{f"Secret/{name}": set() for name in ("pull", "projected", "all", "token")},
        **{f"ConfigMap/{name}": set() for name in ("file", "environment")},
        **{f"PersistentVolumeClaim/{name}": set() for name in ("claim", "m")},
        "ServiceAccount/account": set(),
        "StorageClass/fast": set(),
        "Secret/mounted": {"a"},
        "Secret/variable": {"b"},
        "ConfigMap/setting": {"c"},
    }
