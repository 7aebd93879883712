"""KServe's field ``kvCacheOffloading`` as the configuration of our tiers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kserve_lmcache.compat.lmcache import configuration as lmcache
from kserve_lmcache.compat.source import directory_of
from kserve_lmcache.config import kserve_offloading
from kserve_lmcache.config.completion import complete
from kserve_lmcache.config.configuration import Configuration
from kserve_lmcache.config.kserve_offloading import CPU, POLICY, SECONDARY
from kserve_lmcache.config.memory_budget import Needs
from tests.support.configuration import problems, resolved

GIB = 2**30
SPEC = {"spec_name": "TieringOffloadingSpec", "cpu_bytes_to_use": GIB, "eviction_policy": "lru"}


def with_disk(directory: Path | str, **changes: Any) -> dict[str, Any]:
    tier = {"type": "fs", "root_dir": str(directory), **changes}
    return {**SPEC, "secondary_tiers": [tier]}


def test_the_names_are_vllms() -> None:
    """vLLM 0.24 has fewer of them, and KServe passes the field since vLLM 0.22."""
    folder = directory_of("vllm") / "v1" / "kv_offload"
    source = "\n".join(path.read_text() for path in sorted(folder.rglob("*.py")))
    for name in ("cpu_bytes_to_use", "eviction_policy"):
        assert f'"{name}"' in source
    if (folder / "tiering").is_dir():
        for text in ("secondary_tiers", "TieringOffloadingSpec", "root_dir: str"):
            assert text in source
        # The whole engine's, which the workers share.
        assert "kv_bytes_per_chunk // num_copies" in source


def test_the_local_tier_and_the_policy(tmp_path: Path) -> None:
    configuration = resolved(tmp_path, offloading=SPEC)
    assert (configuration.problems, configuration.notes) == ([], [])
    assert configuration.get("max_local_cpu_size") == 1.0
    assert configuration.source("max_local_cpu_size") == CPU
    assert configuration.get("cache_policy") == "LRU"
    assert configuration.source("cache_policy") == POLICY
    assert configuration.get("local_disk") is None
    for name in ("kvCacheOffloading.cpu", "cpu_bytes_to_use"):
        assert name in CPU


@pytest.mark.parametrize(("workers", "size"), [(1, 1.0), (2, 0.5), (4, 0.25)])
def test_the_workers_share_the_size_of_the_field(tmp_path: Path, workers: int, size: float) -> None:
    configuration = resolved(tmp_path, offloading=SPEC)
    for _ in range(2):  # it is sized anew when the weights are there
        complete(configuration, None, Needs("cuda", workers))
        assert configuration.get("max_local_cpu_size") == size
        assert configuration.source("max_local_cpu_size").startswith(CPU)
    shared = f", shared by {workers} workers" if workers > 1 else ""
    assert configuration.source("max_local_cpu_size") == f"{CPU}{shared}"


def test_a_size_of_a_flag_is_that_of_a_worker(tmp_path: Path) -> None:
    configuration = resolved(tmp_path, None, ["max_local_cpu_size=3"], offloading=SPEC)
    complete(configuration, None, Needs("cuda", 2))
    assert configuration.get("max_local_cpu_size") == 3.0
    assert configuration.notes == [
        f"{CPU} is not used: --lmcache max_local_cpu_size sets max_local_cpu_size"
    ]


def test_the_field_beats_the_file_and_variables_and_leaves_the_store(tmp_path: Path) -> None:
    configuration = resolved(
        tmp_path,
        "max_local_cpu_size: 9\nremote_url: redis://redis:6379\n",
        offloading=SPEC,
        LMCACHE_CACHE_POLICY="LFU",
    )
    assert configuration.get("max_local_cpu_size") == 1.0
    assert configuration.get("cache_policy") == "LRU"
    assert configuration.get("remote_url") == "redis://redis:6379"
    assert configuration.problems == []
    assert configuration.notes == [
        f"{tmp_path}/lmcache.yaml:1 is not used: {CPU} sets max_local_cpu_size",
        f"LMCACHE_CACHE_POLICY is not used: {POLICY} sets cache_policy",
    ]


def test_without_the_field_the_defaults_hold(tmp_path: Path) -> None:
    configuration = resolved(tmp_path)
    assert "max_local_cpu_size" not in configuration.values
    assert "cache_policy" not in configuration.values


def test_a_policy_that_lmcache_does_not_have_is_refused(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, offloading={**SPEC, "eviction_policy": "arc"})
    assert problem.startswith(f"{POLICY}: cache_policy is 'ARC', which LMCache does not know.")
    assert "ARC" not in lmcache.cache_policies()
    given = {**SPEC, "eviction_policy": "arc"}
    assert problems(tmp_path, None, ["cache_policy=LFU"], offloading=given) == []


def disk(configuration: Configuration) -> tuple[str, float, str]:
    name = "max_local_disk_size"
    size = round(configuration.get(name), 6)
    return configuration.get("local_disk"), size, configuration.source(name)


def test_the_disk_tier_has_the_size_that_is_told(tmp_path: Path) -> None:
    given = {**with_disk(tmp_path), "cpu_bytes_to_use": 2**20}
    storage = {"KSERVE_LMCACHE_EPHEMERAL_STORAGE": str(2**20)}
    configuration = resolved(tmp_path, offloading=given, **storage)
    assert configuration.problems == configuration.notes == []
    source = "default: 90% of ephemeral_storage (KSERVE_LMCACHE_EPHEMERAL_STORAGE)"
    assert disk(configuration) == (str(tmp_path), round(0.9 / 1024, 6), source)
    assert configuration.source("local_disk") == SECONDARY


@pytest.mark.parametrize("told", [{}, {"KSERVE_LMCACHE_EPHEMERAL_STORAGE": "0"}])
def test_without_a_size_the_disk_tier_is_as_large_as_the_local_tier(
    tmp_path: Path, told: dict[str, str]
) -> None:
    given = {**with_disk(tmp_path), "cpu_bytes_to_use": 2**20}
    configuration = resolved(tmp_path, offloading=given, **told)
    assert configuration.problems == []
    source = "default: as much as kvCacheOffloading.cpu"
    assert disk(configuration) == (str(tmp_path), round(1 / 1024, 6), source)
    (note,) = configuration.notes
    assert "KServe does not tell the size of the volume of kvCacheOffloading.secondary" in note


def test_the_disk_tier_is_never_larger_than_its_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kserve_offloading, "_room", lambda directory: GIB)
    configuration = resolved(
        tmp_path,
        offloading={**with_disk(tmp_path), "cpu_bytes_to_use": 8 * GIB},
        KSERVE_LMCACHE_EPHEMERAL_STORAGE=str(4 * GIB),
    )
    source = f"default: 90% of the file system of {tmp_path}"
    assert disk(configuration) == (str(tmp_path), 0.9, source)


@pytest.mark.parametrize("source", ["file", "flag", "variable"])
def test_any_source_may_bound_the_disk_tier(tmp_path: Path, source: str) -> None:
    name = "max_local_disk_size"
    given: dict[str, Any] = {
        "file": {"file": f"{name}: 7"},
        "flag": {"flags": [f"{name}=7"]},
        "variable": {"LMCACHE_MAX_LOCAL_DISK_SIZE": "7"},
    }[source]
    configuration = resolved(tmp_path, offloading=with_disk(tmp_path), **given)
    assert (configuration.problems, configuration.notes) == ([], [])
    assert configuration.get(name) == 7.0
    assert configuration.source("local_disk") == SECONDARY


def test_a_disk_tier_of_the_file_stays_beside_the_field(tmp_path: Path) -> None:
    configuration = resolved(
        tmp_path, "local_disk: /cache\nmax_local_disk_size: 7", offloading=SPEC
    )
    assert (configuration.get("local_disk"), configuration.problems) == ("/cache", [])


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        ({"spec_name": "CPUOffloadingSpec"}, "spec_name", "must be TieringOffloadingSpec"),
        ({"spec_name": None}, "spec_name", "must be TieringOffloadingSpec"),
        ({"cpu_bytes_to_use": 0}, "cpu_bytes_to_use", "must be a number of bytes above 0"),
        ({"cpu_bytes_to_use": True}, "cpu_bytes_to_use", "must be a number of bytes above 0"),
        ({"cpu_bytes_to_use": "1Gi"}, "cpu_bytes_to_use", "must be a number of bytes above 0"),
        ({"block_size": 64}, "block_size", "is not honoured by this server"),
        ({"store_threshold": 2}, "store_threshold", "is not honoured by this server"),
        ({"secondary_tiers": {}, "backpressure": {}}, "backpressure", "is not honoured"),
        ({"secondary_tiers": ["/x"]}, "secondary_tiers", "must be a list of mappings"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], name: str, message: str
) -> None:
    (problem,) = problems(tmp_path, offloading={**SPEC, **change})
    assert problem.startswith(f"--kv-transfer-config {name}: {name} ")
    assert message in problem
    assert "leave offloading to vLLM by --offload=off" in problem


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        ({"type": "obj"}, "type", "is 'obj', but must be fs (fileSystem)"),
        ({"root_dir": "cache"}, "root_dir", "must be the path of one directory"),
        ({"root_dir": "/a,/b"}, "root_dir", "must be the path of one directory"),
        ({"n_read_threads": 4}, "n_read_threads", "is not honoured by this server"),
        ({"locality": "REMOTE"}, "locality", "is not honoured by this server"),
    ],
)
def test_what_a_secondary_tier_cannot_have_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], name: str, message: str
) -> None:
    given = with_disk(**{"directory": "/cache", **change})
    (problem,) = [
        each
        for each in problems(tmp_path, offloading=given)
        if "honoured" in message or name in each
    ]
    assert problem.startswith(f"--kv-transfer-config secondary_tiers {name}: ")
    assert message in problem


def test_several_disks_are_refused(tmp_path: Path) -> None:
    given = with_disk("/mnt/kv-cache-0")
    given["secondary_tiers"] *= 2
    (problem,) = problems(tmp_path, offloading=given)
    assert "has 2 tiers, but this server has one disk" in problem


def test_all_mistakes_come_together(tmp_path: Path) -> None:
    given = {"spec_name": "TieringOffloadingSpec", "a": 1, "b": 2, "eviction_policy": "arc"}
    found = problems(tmp_path, offloading=given)
    assert len(found) == 4
    text = json.dumps(found)
    for name in ("cpu_bytes_to_use", "'ARC'", "a is not honoured", "b is not honoured"):
        assert name in text


@pytest.mark.parametrize("own", [{"own": {"offload": "off"}}, {"KSERVE_LMCACHE_OFFLOAD": "off"}])
def test_with_offloading_off_the_field_is_vllms(tmp_path: Path, own: dict[str, Any]) -> None:
    given = {**SPEC, "eviction_policy": "arc", "block_size": 64}
    configuration = resolved(tmp_path, offloading=given, **own)
    assert configuration.problems == []
    assert "max_local_cpu_size" not in configuration.values


def test_keys_of_lmcache_in_the_connectors_configuration_are_flags(tmp_path: Path) -> None:
    extra = {**SPEC, "lmcache.chunk_size": 64}
    configuration = resolved(tmp_path, connector=extra, offloading=extra)
    assert configuration.problems == []
    assert configuration.get("chunk_size") == 64
