from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.packaging import crds
from tests.packaging.manifests import FOLDERS, GUIDE, ROOT, RUNTIMES, WAYS, read
from tests.packaging.pods import Document, containers, label
from tests.packaging.rules import check

Way = Callable[[Path], list[Document]]

each_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
each_folder = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


@each_way
@each_folder
def test_rules_find_nothing(folder: Path, way: Way) -> None:
    assert check(way(folder)) == []


if crds.FOLDER.is_dir():  # KServe's CRDs are data beside some checkouts, never part of this one

    @each_way
    @each_folder
    def test_crds_accept_kserve_documents(folder: Path, way: Way) -> None:
        served = [d for d in way(folder) if d["apiVersion"].startswith("serving.kserve.io/")]
        assert served
        assert {label(d): crds.errors(d) for d in served} == {label(d): [] for d in served}

    def test_crds_refuse_volumes_beside_the_predictor() -> None:
        service = _one(read(GUIDE), "InferenceService")
        service["spec"]["volumes"] = []
        assert any("volumes" in error for error in crds.errors(service))


def test_closed_schema_refuses_what_it_does_not_list() -> None:
    known = {"type": "object", "properties": {"a": {"type": "object", "properties": {}}}}
    closed = crds.close(known)
    assert closed["additionalProperties"] is False
    assert closed["properties"]["a"]["additionalProperties"] is False


def test_closed_schema_keeps_what_is_open_on_purpose() -> None:
    known = {"type": "object", "properties": {}, "x-kubernetes-preserve-unknown-fields": True}
    assert crds.close(known) == known


def test_every_yaml_file_belongs_to_a_kustomization() -> None:
    for folder in FOLDERS:
        kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
        files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
        assert files == set(kustomization["resources"])


@each_way
def test_images_carry_the_version_and_the_device(way: Way) -> None:
    images = {
        document["metadata"]["name"]: container["image"]
        for document in way(RUNTIMES)
        for _, container in containers(document)
    }
    assert images == {
        "kserve-lmcache": "kserve-lmcache:0.1.0-gpu",
        "kserve-lmcache-cpu": "kserve-lmcache:0.1.0-cpu",
    }


def test_one_runtime_alone_is_selected_by_the_format_name() -> None:
    selected = [
        (document["metadata"]["name"], entry["name"])
        for document in read(RUNTIMES)
        for entry in document["spec"]["supportedModelFormats"]
        if entry["autoSelect"]
    ]
    assert selected == [("kserve-lmcache", "huggingface-lmcache")]


def test_the_guide_asks_for_a_format_that_is_selected() -> None:
    service = _one(read(GUIDE), "InferenceService")
    assert service["spec"]["predictor"]["model"]["modelFormat"] == {"name": "huggingface-lmcache"}


@each_way
def test_the_guide_configmap_is_what_the_runtime_mounts(way: Way) -> None:
    config = _one(way(GUIDE), "ConfigMap")
    for runtime in way(RUNTIMES):
        (volume,) = (v for v in runtime["spec"]["volumes"] if v["name"] == "lmcache-config")
        assert volume["configMap"] == {"name": config["metadata"]["name"], "optional": True}
    assert list(config["data"]) == ["lmcache_config.yaml"]
    assert isinstance(yaml.safe_load(config["data"]["lmcache_config.yaml"]), dict)


def test_the_runtimes_differ_only_where_the_device_does() -> None:
    gpu, cpu = read(RUNTIMES)
    for runtime in (gpu, cpu):
        (container,) = runtime["spec"]["containers"]
        for field in ("image", "resources"):
            del container[field]
        del runtime["metadata"]["name"]
        for entry in runtime["spec"]["supportedModelFormats"]:
            del entry["autoSelect"]
            entry.pop("priority", None)
    assert gpu == cpu


def test_loading_may_take_half_an_hour() -> None:
    for runtime in read(RUNTIMES):
        probe = runtime["spec"]["containers"][0]["startupProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] >= 30 * 60


def test_image_version_is_the_package_version() -> None:
    version = next(
        line.split('"')[1]
        for line in (ROOT / "pyproject.toml").read_text().splitlines()
        if line.startswith("version = ")
    )
    kustomization = yaml.safe_load((RUNTIMES / "kustomization.yaml").read_text())
    assert [entry["newTag"] for entry in kustomization["images"]] == [
        f"{version}-gpu",
        f"{version}-cpu",
    ]
    assert f"ARG VERSION={version}\n" in (ROOT / "Dockerfile").read_text()


def _one(documents: list[Document], kind: str) -> Document:
    (document,) = (d for d in documents if d["kind"] == kind)
    return document
