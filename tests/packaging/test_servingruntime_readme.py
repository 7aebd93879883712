"""servingruntime/README.md says what is there."""

from __future__ import annotations

import re

import pytest

from kserve_lmcache.config.engine_shape import bytes_per_token
from tests.packaging import schemas
from tests.packaging.manifests import RUNTIMES, SETS, components, documents, examples
from tests.packaging.pods import Document
from tests.packaging.rules import RULES
from tests.packaging.test_manifest_rules import FAULTS
from tests.support.server import ROOT

README = (RUNTIMES / "README.md").read_text()
GIB = 2**30


def rows(heading: str) -> list[list[str]]:
    """The cells of the table whose header starts with ``heading``."""
    lines = README.splitlines()
    (start,) = (number for number, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def test_every_link_and_path_is_there() -> None:
    links = re.findall(r"\]\(([\w./-]+)\)", README)
    assert len(links) > 20
    assert [link for link in links if not (RUNTIMES / link).exists()] == []
    folders = re.findall(r"-k (servingruntime[\w./-]*\w|servingruntime)", README)
    assert len(folders) > 3
    assert [f for f in folders if not (ROOT / f / "kustomization.yaml").exists()] == []


def test_every_example_and_component_is_named() -> None:
    linked = set(re.findall(r"\]\(((?:examples|components|overlays)/[\w.-]+)\)", README))
    overlays = {f"overlays/{path.name}" for path in (RUNTIMES / "overlays").iterdir()}
    named = {path.removesuffix(".yaml") for path in linked} | {"overlays/local"}
    assert {f"examples/{path.stem}" for path in examples()} <= named
    assert overlays <= named
    # Those of a store stand in the table of stores, by their overlay.
    of_overlays = {"redis", "redis-sentinel", "lmcache-server"}
    assert {f"components/{name}" for name in components() if name not in of_overlays} <= named


def test_five_commands_from_nothing() -> None:
    (block,) = re.findall(r"Five commands.*?```sh\n(.*?)```", README, re.DOTALL)
    commands = block.strip().splitlines()
    assert len(commands) == 5
    service = _one(documents("overlay local"), "InferenceService")
    assert commands[-1].endswith(f"inferenceservice/{service['metadata']['name']}")
    (image,) = re.findall(r"build -t (\S+)", commands[0])
    assert image in str(documents("overlay local"))
    assert commands[1].endswith(image)


def test_the_runtimes_and_their_images_are_in_the_table() -> None:
    table = {row[0].strip("`"): row[1].strip("`") for row in rows("Runtime")}
    assert table == {
        document["metadata"]["name"]: document["spec"]["containers"][0]["image"]
        for document in documents("runtimes")
    }


@pytest.mark.parametrize("row", rows("Model"), ids=lambda row: row[0])
def test_sizes_are_the_formulas(row: list[str]) -> None:
    _, layers, heads, size, element, latent, token, tokens = row
    expected = bytes_per_token(
        int(layers), int(heads), int(size), int(element), latent={"yes": True, "no": False}[latent]
    )
    assert int(token) == expected
    assert int(tokens) == GIB // expected


def test_every_line_of_the_doctor_is_one_that_it_prints() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "runtime").rglob("doctor/*.py"))
    source += (ROOT / "runtime/kserve_lmcache/cli/doctor.py").read_text()
    lines = re.findall(r"`(?:ok|warn|FAIL) +([a-zA-Z ]+?)(?:  .*?)?`", README)
    assert len(lines) >= 10
    assert {name for name in lines if f'"{name}"' not in source} == set()


def test_every_network_policy_is_in_the_table() -> None:
    policies = {
        document["metadata"]["name"]
        for document in documents("all with redis-sentinel")
        if document["kind"] == "NetworkPolicy"
    }
    assert {row[0].strip("`") for row in rows("NetworkPolicy")} == policies


def test_what_is_tested_is_counted() -> None:
    found = [document for name in SETS for document in documents(name)]
    of = [document["apiVersion"] for document in found]
    text = " ".join(README.split())
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
    started = {row[0].strip("`") for row in rows("Started")}
    assert {path.stem for path in examples()} - started == {"multinode"}


def _one(applied: list[Document], kind: str) -> Document:
    (document,) = (d for d in applied if d["kind"] == kind)
    return document
