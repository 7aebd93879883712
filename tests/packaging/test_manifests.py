"""Every set of manifests that people apply, against schemas and rules."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from kserve_lmcache.compat.lmcache.configuration import cache_policies
from kserve_lmcache.config.settings import SETTINGS
from tests.packaging import schemas
from tests.packaging.manifests import (
    ALTERNATIVES,
    COMPONENTS,
    GUIDE,
    LLM,
    OTHERS,
    ROOT,
    RUNTIMES,
    SETS,
    STORES,
    components,
    documents,
    example,
    kustomize,
    llm_examples,
    load,
    render,
)
from tests.packaging.pods import (
    LLM_SERVICE,
    RUNTIME_KINDS,
    Document,
    all_containers,
    label,
    pods,
)
from tests.packaging.rules import check
from tests.packaging.schemas import Crds
from tests.support.cluster.controller import objects

DEADLINE = "serving.knative.dev/progress-deadline"

each_set = pytest.mark.parametrize("name", list(SETS))


@each_set
def test_rules_find_nothing(name: str) -> None:
    assert check(documents(name)) == []


@each_set
def test_every_document_is_of_a_kind_that_is_checked(name: str) -> None:
    known = (*schemas.CORE, schemas.KSERVE, *schemas.OPERATORS)
    assert [label(d) for d in documents(name) if not d["apiVersion"].startswith(known)] == []


@pytest.mark.parametrize("version", schemas.KUBERNETES)
@each_set
def test_kubernetes_accepts_its_own_kinds(name: str, version: str) -> None:
    core = [d for d in documents(name) if d["apiVersion"].startswith(schemas.CORE)]
    found = {label(d): schemas.core_errors(d, version) for d in core}
    assert found == {name: [] for name in found}


def test_kubernetes_refuses_planted_faults() -> None:
    redis = documents("overlay redis")
    store, service = _one(redis, "StatefulSet"), _one(redis, "Service")
    store["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
    service["spec"]["ports"][0]["port"] = "redis"
    for version in schemas.KUBERNETES:
        assert "livenessprobe" in str(schemas.core_errors(store, version))
        assert "redis" in str(schemas.core_errors(service, version))


def test_crds_accept_every_document(crds: Crds) -> None:
    """CRDs are data beside some checkouts, never part of this one; each of them may be missing."""
    found = {
        f"{name}: {label(document)}": crds.errors(document)
        for name in SETS
        for document in documents(name)
        if crds.has(document)
    }
    assert found == {name: [] for name in found}


def test_crds_refuse_a_field_that_a_kind_does_not_have(crds: Crds) -> None:
    documents_by_kind = {d["kind"]: d for name in SETS for d in documents(name) if crds.has(d)}
    for kind, document in documents_by_kind.items():
        document["spec"]["workloads"] = {}
        assert any("workloads" in error for error in crds.errors(document)), kind


def test_crds_refuse_volumes_beside_the_predictor(crds: Crds) -> None:
    service = _one(load(render(GUIDE)), "InferenceService")
    if crds.has(service):
        service["spec"]["volumes"] = []
        assert any("volumes" in error for error in crds.errors(service))


def test_closed_schema_refuses_what_it_does_not_list() -> None:
    known = {"type": "object", "properties": {"a": {"type": "object", "properties": {}}}}
    closed = schemas.close(known)
    assert closed["additionalProperties"] is False
    assert closed["properties"]["a"]["additionalProperties"] is False


def test_closed_schema_keeps_what_is_open_on_purpose() -> None:
    known = {"type": "object", "properties": {}, "x-kubernetes-preserve-unknown-fields": True}
    assert schemas.close(known) == known


def test_every_file_belongs_to_a_kustomization() -> None:
    named = set()
    for path in RUNTIMES.rglob("kustomization.yaml"):
        text = path.read_text()
        beside = [other for other in path.parent.iterdir() if other.is_file()]
        named |= {path, *(other for other in beside if other.name in text)}
    chart = RUNTIMES / "chart"
    files = {path for path in RUNTIMES.rglob("*") if path.is_file() and chart not in path.parents}
    alone = {RUNTIMES / "README.md", *(RUNTIMES / "examples").glob("*.yaml")}
    alone |= {*(LLM / "examples").glob("*.yaml")}
    assert files - alone == named


def test_every_component_is_in_all_together_or_stands_for_another() -> None:
    secured = {"tls", "tls-cert-manager"}
    assert {*STORES, *secured, *OTHERS, *ALTERNATIVES} == set(components())


def test_images_carry_the_version_and_the_device() -> None:
    version = _version()
    images = {
        (document["metadata"]["name"], container.spec["image"])
        for document in _runtimes()
        for container in all_containers([document])
    }
    assert images == {
        ("kserve-lmcache", f"kserve-lmcache:{version}-gpu"),
        ("kserve-lmcache-cpu", f"kserve-lmcache:{version}-cpu"),
        ("kserve-lmcache-multinode", f"kserve-lmcache:{version}-gpu"),
    }
    assert f"ARG VERSION={version}\n" in (ROOT / "Dockerfile").read_text()


def test_the_configurations_of_llm_services_have_the_runtimes_images() -> None:
    images = {
        document["metadata"]["name"]: container.spec["image"]
        for document in documents("llm")
        for container in all_containers([document])
    }
    of_runtimes = {
        document["metadata"]["name"]: document["spec"]["containers"][0]["image"]
        for document in _runtimes()
        if "workerSpec" not in document["spec"]
    }
    assert images == of_runtimes


def test_the_configurations_of_llm_services_have_the_runtimes_volumes() -> None:
    """The store of a namespace is read alike by services of both kinds."""
    (gpu, cpu), runtime = documents("llm"), _runtimes()[0]
    own = {"devshm", "tmp"}  # in KServe's preset
    (of_runtime,) = runtime["spec"]["containers"]
    for config in (gpu, cpu):
        template = config["spec"]["template"]
        (container,) = template["containers"]
        assert container["name"] == "main"
        assert template["volumes"] == [
            each for each in runtime["spec"]["volumes"] if each["name"] not in own
        ]
        assert container["volumeMounts"] == [
            each for each in of_runtime["volumeMounts"] if each["name"] not in own
        ]
        assert config["spec"]["labels"]["kserve-lmcache/remote-client"] == "true"
    for config in (gpu, cpu):
        (container,) = config["spec"]["template"]["containers"]
        del container["image"], container["resources"], config["metadata"]["name"]
    assert gpu == cpu


def test_a_configuration_of_llm_services_tells_the_size_of_the_emptydir() -> None:
    setting = next(each for each in SETTINGS if each.name == "ephemeral_storage")
    for config in documents("llm"):
        (container,) = config["spec"]["template"]["containers"]
        (told,) = (e for e in container["env"] if e["name"] == setting.environment_variable)
        # KServe adds the size of kvCacheOffloading's emptyDir to this request.
        field = {"containerName": container["name"], "resource": "requests.ephemeral-storage"}
        assert told["valueFrom"] == {"resourceFieldRef": field}


def test_llm_services_name_a_configuration_that_is_there() -> None:
    configurations = {document["metadata"]["name"] for document in documents("llm")}
    for path in llm_examples():
        (service,) = (d for d in documents(f"llm {path.stem}") if d["kind"] == LLM_SERVICE)
        assert {each["name"] for each in service["spec"]["baseRefs"]} <= configurations
        assert "workload" not in service["spec"]


def test_the_field_of_the_example_is_one_that_we_honour() -> None:
    (service,) = (d for d in documents("llm kv-cache-offloading") if d["kind"] == LLM_SERVICE)
    field = service["spec"]["kvCacheOffloading"]
    assert field["evictionPolicy"].upper() in cache_policies()
    assert [list(each) for each in field["secondary"]] == [["fileSystem"]]


def test_one_place_names_our_image() -> None:
    places = [
        path for path in RUNTIMES.rglob("kustomization.yaml") if "images:" in path.read_text()
    ]
    assert places == [COMPONENTS / "image" / "kustomization.yaml"]


def test_the_format_selects_one_runtime_and_another_for_many_nodes() -> None:
    selected = {
        ("workerSpec" in document["spec"], entry["name"]): document["metadata"]["name"]
        for document in _runtimes()
        for entry in document["spec"]["supportedModelFormats"]
        if entry["autoSelect"]
    }
    assert selected == {
        (False, "huggingface-lmcache"): "kserve-lmcache",
        (True, "huggingface-lmcache"): "kserve-lmcache-multinode",
    }


def test_every_runtime_takes_services_without_a_storage_uri_by_name() -> None:
    for document in _runtimes():
        formats = {e["name"]: e["autoSelect"] for e in document["spec"]["supportedModelFormats"]}
        assert formats["huggingface"] is False


def test_the_runtimes_differ_only_where_the_device_or_the_nodes_do() -> None:
    gpu, cpu, multinode = _runtimes()
    for runtime in (gpu, cpu, multinode):
        (container,) = runtime["spec"]["containers"]
        for field in ("image", "resources", "command"):
            container.pop(field, None)
        del runtime["metadata"]["name"]
        del runtime["spec"]["supportedModelFormats"]
    assert gpu == cpu
    del multinode["spec"]["workerSpec"]
    del multinode["spec"]["labels"]["kserve-lmcache/multinode"]
    (container,) = multinode["spec"]["containers"]
    container["ports"] = [port for port in container["ports"] if port["name"] != "ray-gcs"]
    container["env"] = [each for each in container["env"] if each["name"] != "POD_IP"]
    assert gpu == multinode


def test_a_worker_has_what_the_head_has() -> None:
    head, worker = pods(_runtimes()[2])
    (of_head,), (of_worker,) = head.containers, worker.containers
    assert worker.spec["volumes"] == head.spec["volumes"]
    for field in ("image", "resources", "securityContext", "volumeMounts"):
        assert of_worker.spec[field] == of_head.spec[field]
    assert worker.labels["kserve-lmcache/multinode"] == head.labels["kserve-lmcache/multinode"]


@each_set
def test_our_image_runs_as_any_user(name: str) -> None:
    """The image has a user; KServe (oci://) and OpenShift give others."""
    for container in all_containers(documents(name)):
        if container.spec.get("image", "").startswith("kserve-lmcache"):
            context = container.spec.get("securityContext", {})
            assert not {"runAsUser", "runAsGroup"} & set(context), container.where


@pytest.mark.parametrize("store", STORES)
def test_no_store_must_name_a_user(store: str) -> None:
    """OpenShift gives each namespace a user, and refuses pods that name another."""
    applied = load(kustomize([RUNTIMES / "base"], [store, "any-user"]))
    stores = [document for document in applied if document["kind"] == "StatefulSet"]
    assert stores
    assert not any(word in str(stores) for word in ("runAsUser", "runAsGroup", "fsGroup"))
    assert check(applied) == []


def test_the_namespaced_runtimes_differ_in_their_kind_alone() -> None:
    namespaced = documents("namespaced")
    assert {document["kind"] for document in namespaced} == {"ServingRuntime"}
    for document in namespaced:
        document["kind"] = "ClusterServingRuntime"
    assert namespaced == _runtimes()


@each_set
def test_the_stores_config_is_what_the_runtimes_mount(name: str) -> None:
    applied = documents(name)
    configs = [d for d in applied if label(d) == "ConfigMap/lmcache-config"]
    for config in configs:
        assert list(config["data"]) == ["lmcache_config.yaml"]
        assert isinstance(yaml.safe_load(config["data"]["lmcache_config.yaml"]), dict)
    for runtime in (d for d in applied if d["kind"] in RUNTIME_KINDS):
        volumes = {volume["name"]: volume for volume in runtime["spec"]["volumes"]}
        mounted = volumes["lmcache-config"]["configMap"]
        assert mounted == {"name": "lmcache-config", "optional": True}


@pytest.mark.parametrize("name", components())
def test_a_component_changes_no_runtime_of_the_cluster(name: str) -> None:
    """A changed runtime is a rollout of all its services, another team's as well."""
    found = {label(d): d for d in documents(f"component {name}") if d["kind"] in RUNTIME_KINDS}
    assert found == {label(document): document for document in _runtimes()}


@each_set
def test_no_set_changes_a_runtime_of_the_cluster(name: str) -> None:
    plain = {label(document): document for document in _runtimes()}
    for document in documents(name):
        if document["kind"] == "ClusterServingRuntime":
            assert document == plain[label(document)]


def test_compiled_code_outlives_the_pod_in_a_claim() -> None:
    place = "/var/cache/kserve-lmcache"
    for name, volume in (
        ("runtimes", {"name": "compiled", "emptyDir": {}}),
        ("component compile-cache", {"name": "kept", **_claim("kserve-lmcache-compiled")}),
    ):
        service = "example two-replicas" if name == "runtimes" else name
        (pod,) = {
            str(each["spec"]["template"]["spec"]): each["spec"]["template"]["spec"]
            for each in objects(documents(service), "models")
            if each["kind"] == "Deployment"
        }.values()
        server = next(each for each in pod["containers"] if each["name"] == "kserve-container")
        environment = {each["name"]: each.get("value") for each in server["env"]}
        assert environment["KSERVE_LMCACHE_COMPILE_CACHE_DIR"] == place
        (mount,) = (each for each in server["volumeMounts"] if each["mountPath"] == place)
        assert mount["name"] == volume["name"]
        assert volume in pod["volumes"]


def _claim(name: str) -> dict[str, Any]:
    return {"persistentVolumeClaim": {"claimName": name}}


def test_a_service_with_volumes_keeps_them() -> None:
    with pytest.raises(AssertionError, match="testing value /spec/predictor/volumes failed"):
        kustomize([RUNTIMES / "base", example("lora")], ["compile-cache"])


def test_loading_may_take_an_hour() -> None:
    for runtime in _runtimes():
        probe = runtime["spec"]["containers"][0]["startupProbe"]
        seconds = probe["periodSeconds"] * probe["failureThreshold"]
        assert seconds >= 60 * 60
        # Knative's own patience, which is ten minutes otherwise.
        assert runtime["spec"]["annotations"][DEADLINE] == f"{seconds}s"


def test_knative_takes_the_serverless_service_with_its_default_features() -> None:
    """https://knative.dev/docs/serving/configuration/feature-flags/"""
    (service,) = (
        each
        for each in objects(documents("example canary"), "models")
        if each["apiVersion"].startswith("serving.knative.dev/")
    )
    pod = service["spec"]["template"]["spec"]
    assert set(pod) == {"containers", "volumes"}  # no initContainers, no securityContext, …
    (container,) = pod["containers"]
    for variable in container["env"]:
        assert not {"fieldRef", "resourceFieldRef"} & set(variable.get("valueFrom", {})), variable
    kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"configMap", "secret", "projected", "emptyDir"}


def test_knatives_patience_reaches_its_revisions() -> None:
    (service,) = (
        each
        for each in objects(documents("example canary"), "models")
        if each["apiVersion"].startswith("serving.knative.dev/")
    )
    assert service["spec"]["template"]["metadata"]["annotations"][DEADLINE] == "3600s"


def _version() -> str:
    return next(
        line.split('"')[1]
        for line in (ROOT / "pyproject.toml").read_text().splitlines()
        if line.startswith("version = ")
    )


def _runtimes() -> list[Document]:
    """GPU, CPU, multi-node."""
    return sorted(documents("runtimes"), key=lambda document: len(document["metadata"]["name"]))


def _one(applied: list[Document], kind: str) -> Document:
    (document,) = (d for d in applied if d["kind"] == kind)
    return document
