"""What is in the image of the Dockerfile, layer by layer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster.images import ROOT
from tests.support.containers import Container, Engine, Images
from tests.support.containers.run import started

pytestmark = pytest.mark.container
SBOM = "/usr/share/sbom/kserve-lmcache.cdx.json"
# What a build leaves behind, as globs below the root of a layer.
LEFTOVERS = (
    *("root/.cache/*", "home/*/.cache/*", "tmp/*", "var/tmp/*", "var/lib/apt/lists/*_Packages"),
    *("requirements", "dist", "pip", "src", "opt/sbom"),
)
# What may hold a secret or an address.
PRIVATE = ("root/.netrc", "root/.docker", "root/.ssh", "etc/pip.conf", "**/.git", "**/.pypirc")
# g++ is needed: torch compiles on a CPU. Nothing else of a tool chain is.
TOOLS = ("make", "git", "dpkg-buildpackage", "cmake", "cargo", "rustc", "curl", "wget")


@pytest.fixture(scope="module")
def shell(engine: Engine, container_images: Images) -> Iterator[Container]:
    """A container of the image that does nothing, to look around in."""
    words = ("--entrypoint", "sleep", "--network", "none", container_images.built, "600")
    with started(engine, *words) as container:
        yield container


def image(engine: Engine, images: Images) -> dict[str, object]:
    (found,) = json.loads(engine.docker("image", "inspect", images.built).stdout)
    return dict(found)


def layers(engine: Engine, images: Images) -> list[Path]:
    """The folders of the layers, as the engine keeps them on this machine."""
    driver = image(engine, images)["GraphDriver"]
    assert isinstance(driver, dict)
    data = driver["Data"]
    folders = [data["UpperDir"], *data.get("LowerDir", "").split(":")]
    return [Path(folder) for folder in folders if folder]


def test_the_image_is_within_its_budget(
    engine: Engine, container_images: Images, record_property: pytest.RecordProperty
) -> None:
    budget = re.search(r"(\d+) GB for the CPU", (ROOT / "Dockerfile").read_text())
    assert budget
    size = image(engine, container_images)["Size"]
    assert isinstance(size, int)
    record_property("image_bytes", size)
    record_property("build_seconds", container_images.seconds)
    print(f"{size / 1e9:.2f} GB, built in {container_images.seconds:.0f} s")
    assert 1e9 < size < int(budget[1]) * 1e9


def test_a_new_version_of_ours_is_a_small_pull(engine: Engine, container_images: Images) -> None:
    """All layers from our package on, which is the first that a new version changes."""
    lines = engine.docker(
        *("history", "--no-trunc", "--human=false", "--format", "{{.Size}} {{.CreatedBy}}"),
        container_images.built,
    ).stdout.splitlines()
    (ours,) = (number for number, line in enumerate(lines) if "/mnt/*.whl" in line)
    changed = sum(int(line.split()[0]) for line in lines[: ours + 1])
    print(f"{changed / 1e6:.1f} MB of a new version")
    assert 0 < changed < 20e6


def test_no_layer_holds_a_cache_a_secret_or_a_build_tool(
    engine: Engine, container_images: Images
) -> None:
    found = layers(engine, container_images)
    assert len(found) > 3
    assert all(folder.is_dir() for folder in found)
    left = [str(path) for layer in found for glob in LEFTOVERS for path in layer.glob(glob)]
    assert left == []
    assert [str(path) for layer in found for glob in PRIVATE for path in layer.glob(glob)] == []
    history = engine.docker("history", "--no-trunc", container_images.built).stdout
    assert not re.search(r"PIP_\w+=|https?://(?!localhost)\S+@|password|token", history, re.I)


def test_no_tool_is_in_the_image_that_serving_does_not_need(shell: Container) -> None:
    script = "; ".join(f"command -v {tool} || true" for tool in TOOLS)
    assert shell.execute("sh", "-c", script) == ""
    assert shell.execute("sh", "-c", "command -v g++").strip()


def test_the_list_of_components_is_what_is_installed(shell: Container) -> None:
    def name(text: str) -> str:
        return re.sub(r"[-_.]+", "-", text).lower()

    listed = json.loads(shell.execute("cat", SBOM))["components"]
    command = ("/opt/venv/bin/python3", "-m", "pip", "list", "--format=json")
    installed = json.loads(shell.execute(*command))
    assert {(name(each["name"]), each["version"]) for each in listed} == {
        (name(each["name"]), each["version"]) for each in installed
    }
    assert "kserve-lmcache" in {name(each["name"]) for each in listed}


def test_the_image_names_its_user_its_port_and_its_health_check(
    engine: Engine, container_images: Images
) -> None:
    config = image(engine, container_images)["Config"]
    assert isinstance(config, dict)
    assert config["User"] == "1000"
    assert set(config["ExposedPorts"]) == {"8080/tcp"}
    assert "/v2/health/ready" in " ".join(config["Healthcheck"]["Test"])
