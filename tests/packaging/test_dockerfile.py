from __future__ import annotations

import contextlib
import importlib.metadata
import re
from pathlib import Path

import pytest

from tests.packaging.dockerfile import Stage, excluded, stages
from tests.packaging.manifests import ROOT
from tests.packaging.tools import run

DOCKERFILE = ROOT / "Dockerfile"
DOCKERIGNORE = ROOT / ".dockerignore"
IMAGES = ("on-kserve", "runtime")

each_image = pytest.mark.parametrize("image", IMAGES)


def test_hadolint_is_content() -> None:
    assert run("hadolint", "--no-color", str(DOCKERFILE)) == ""


def test_hadolint_finds_a_planted_fault(tmp_path: Path) -> None:
    faulty = tmp_path / "Dockerfile"
    faulty.write_text("FROM debian:latest\n")
    assert "DL3007" in run("hadolint", "--no-color", str(faulty))


def test_every_copied_path_exists_and_is_in_the_build_context() -> None:
    sources = {path for stage in _stages() for path in stage.context_sources()}
    assert sources
    assert {path for path in sources if not (ROOT / path).exists()} == set()
    ignored = DOCKERIGNORE.read_text()
    assert {path for path in sources if excluded(path, ignored)} == set()


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_each_device_has_its_lock_and_its_system_stage(device: str) -> None:
    lock = ROOT / "requirements" / f"{device}.txt"
    assert lock.exists()
    assert not excluded(str(lock.relative_to(ROOT)), DOCKERIGNORE.read_text())
    assert f"system-{device}" in [stage.name for stage in _stages()]


def test_the_package_sources_are_in_the_build_context() -> None:
    ignored = DOCKERIGNORE.read_text()
    modules = [path.relative_to(ROOT) for path in (ROOT / "runtime").rglob("*.py")]
    assert modules
    assert [str(path) for path in modules if excluded(str(path), ignored)] == []


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("runtime", False),
        ("runtime/package/module.py", False),
        ("runtime/package/__pycache__/module.pyc", True),
        (".git/config", True),
        ("tests/unit/test_it.py", True),
    ],
)
def test_the_last_pattern_decides(path: str, expected: bool) -> None:
    assert excluded(path, "# a comment\n*\n!runtime\n**/__pycache__\n") is expected


@each_image
def test_image_runs_as_uid_1000(image: str) -> None:
    assert _stage(image).last("USER") == "1000"


@each_image
def test_image_starts_by_the_entry_point(image: str) -> None:
    stage = _stage(image)
    assert stage.last("ENTRYPOINT") == '["/usr/local/bin/entrypoint.sh"]'
    copied = ("COPY", "--chmod=0755 entrypoint.sh /usr/local/bin/entrypoint.sh")
    assert copied in stage.instructions
    assert stage.last("EXPOSE") == "8080"
    assert stage.last("CMD") is None


@each_image
def test_the_command_vllm_is_ours_and_before_vllms_own(image: str) -> None:
    stage = _stage(image)
    copied = ("COPY", "--chmod=0755 vllm.sh /opt/kserve-lmcache/bin/vllm")
    assert copied in stage.instructions
    path = re.search(r"PATH=(\S+)", stage.last("ENV") or "")
    assert path
    assert path[1].split(":")[0] == "/opt/kserve-lmcache/bin"
    # The entry point, which it becomes, is in a directory that is on every PATH.
    assert path[1].endswith(":${PATH}")


def test_the_runtime_brings_what_many_nodes_start_by() -> None:
    copied = ("COPY", "--chmod=0755 multinode.sh /usr/local/bin/multinode.sh")
    assert copied in _stage("runtime").instructions


def test_the_list_of_components_is_made_of_what_is_copied() -> None:
    assert _stage("sbom").base == "builder"
    command = _stage("sbom").last("RUN")
    assert command
    assert command.endswith("/opt/venv/bin/python3")
    copied = {a.split()[0]: a.split()[1] for _, a in _from_stages("runtime")}
    assert copied == {
        "--from=builder": "/opt/venv",
        "--from=sbom": "/kserve-lmcache.cdx.json",
    }


def test_our_package_comes_after_its_dependencies_in_a_layer_of_its_own() -> None:
    """A new version of ours is then a small pull."""
    instructions = _stage("runtime").instructions
    copied = instructions.index(("COPY", "--from=builder /opt/venv /opt/venv"))
    (installed,) = (n for n, (_, a) in enumerate(instructions) if a.endswith("/mnt/*.whl"))
    assert copied < installed
    assert "package" not in {a.partition("from=")[2][:7] for _, a in _stage("builder").instructions}


def test_no_frontend_is_fetched_from_a_registry() -> None:
    assert "# syntax=" not in DOCKERFILE.read_text()


def test_where_packages_come_from_is_in_no_stage_of_the_image() -> None:
    for stage in ("runtime", "system-cpu", "system-gpu"):
        assert not [a for _, a in _stage(stage).instructions if a.startswith("PIP_")]
    with_sources = {s.name for s in _stages() if ("ARG", "PIP_FIND_LINKS") in s.instructions}
    assert with_sources == {"package", "builder", "sbom"}


def test_the_packages_of_the_cpu_image_are_within_its_budget() -> None:
    budget = re.search(r"(\d+) GB for the CPU", DOCKERFILE.read_text())
    assert budget
    total = 0
    for name in [*re.findall(r"^([\w.-]+)==", _lock("cpu"), re.MULTILINE), "torch"]:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            files = importlib.metadata.files(name) or []
            places = (Path(str(file.locate())) for file in files)
            total += sum(place.stat().st_size for place in places if place.is_file())
    assert total > 10**9  # they are installed here
    # The system below them takes some 0.5 GB with the compiler.
    assert total + 0.5e9 < int(budget[1]) * 1e9


def test_the_runtime_is_the_default_target() -> None:
    assert _stages()[-1].name == "runtime"


def test_base_images_are_pinned() -> None:
    images = re.findall(r"^ARG \w+_IMAGE=(\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert images
    assert [i for i in images if not re.search(r":[^:/]*\d[^:/]*$", i)] == []


def test_only_our_package_is_laid_on_kserve_image() -> None:
    installs = [a for name, a in _stage("on-kserve").instructions if name == "RUN"]
    assert len(installs) == 1
    assert installs[0].split()[-5:] == [
        "pip",
        "install",
        "--no-cache-dir",
        "--no-deps",
        "/mnt/*.whl",
    ]


def test_every_install_takes_what_it_names_and_nothing_else() -> None:
    installs = [
        command
        for stage in _stages()
        for name, argument in stage.instructions
        if name == "RUN"
        for command in re.findall(r"pip (?:install|wheel)[^&;]*", argument)
    ]
    assert installs
    assert [command for command in installs if "--no-deps" not in command] == []


def _lock(name: str) -> str:
    return (ROOT / "requirements" / f"{name}.txt").read_text()


def _from_stages(image: str) -> list[tuple[str, str]]:
    return [each for each in _stage(image).instructions if each[1].startswith("--from=")]


def _stages() -> list[Stage]:
    return stages(DOCKERFILE.read_text())


def _stage(name: str) -> Stage:
    (stage,) = (stage for stage in _stages() if stage.name == name)
    return stage
