"""``compose.yaml`` names what Compose knows, and starts what the README's line starts."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from kserve_lmcache.config import keys
from kserve_lmcache.config.settings import SETTINGS
from tests.packaging.documents import README, blocks
from tests.packaging.manifests import ROOT, RUNTIMES
from tests.support.cluster import docker

FILE = ROOT / "compose.yaml"
# Of the Compose Specification, as far as they are used here.
TOP = {"services", "volumes"}
SERVICE = {
    *("image", "build", "command", "environment", "read_only", "tmpfs", "volumes", "mem_limit"),
    *("shm_size", "cap_drop", "security_opt", "stop_grace_period", "depends_on", "ports", "user"),
}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return found


@pytest.fixture(scope="module")
def servers(compose: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in compose["services"].values() if "build" in each]


def test_compose_knows_every_name(compose: dict[str, Any]) -> None:
    assert {name for name in compose if not name.startswith("x-")} == TOP
    for name, service in compose["services"].items():
        assert set(service) <= SERVICE, name


def test_a_replica_is_the_readmes_line(servers: list[dict[str, Any]]) -> None:
    (line,) = re.findall(r"^docker run .*(?:\n  .*)*", "".join(blocks(README, "sh")), re.MULTILINE)
    run, (memory, shared) = docker.parse(line), re.findall(r"--(?:memory|shm-size) (\S+)", line)
    (container,) = run.spec["containers"]
    assert len(servers) == 2
    for server in servers:
        assert server["image"] == run.image
        assert server["command"] == container["args"]
        assert server["read_only"] is container["securityContext"]["readOnlyRootFilesystem"]
        assert server["tmpfs"] == re.findall(r"--tmpfs (\S+)", line)
        assert (server["mem_limit"], server["shm_size"]) == (memory, shared)


def test_the_image_is_built_as_the_readme_builds_it(servers: list[dict[str, Any]]) -> None:
    (line,) = re.findall(r"^docker build .*", "".join(blocks(README, "sh")), re.MULTILINE)
    for server in servers:
        assert f"-t {server['image']} " in line
        options = [f"{name}={value}" for name, value in server["build"]["args"].items()]
        assert re.findall(r"--build-arg (\S+)", line) == options
        assert server["build"]["context"] == "."


def test_the_replicas_use_the_store_and_have_ports_of_their_own(
    compose: dict[str, Any], servers: list[dict[str, Any]]
) -> None:
    known = {setting.environment_variable for setting in SETTINGS}
    known |= {f"LMCACHE_{name.upper()}" for name in keys.table()}
    for server in servers:
        assert set(server["environment"]) <= known
        host = re.fullmatch(r"redis://(\w+):6379", server["environment"]["LMCACHE_REMOTE_URL"])
        assert host
        assert host[1] in compose["services"]
        assert server["depends_on"] == [host[1]]
        volumes = dict(each.split(":") for each in server["volumes"])
        assert set(volumes) == set(compose["volumes"])
        assert server["environment"]["KSERVE_LMCACHE_COMPILE_CACHE_DIR"] in volumes.values()
    ports = [port for server in servers for port in server["ports"]]
    assert ports == ["8080:8080", "8081:8080"]


def test_the_redis_is_the_manifests_and_evicts(compose: dict[str, Any]) -> None:
    redis = compose["services"]["redis"]
    manifest = (RUNTIMES / "components" / "redis" / "statefulset.yaml").read_text()
    assert f"image: {redis['image']}\n" in manifest
    assert "--maxmemory-policy allkeys-lru" in " ".join(redis["command"])
