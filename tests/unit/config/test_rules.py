"""Each refusal, with its exact message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kserve_lmcache.config import keys, local_tier
from kserve_lmcache.config.engine_shape import EngineShape
from kserve_lmcache.config.resources import Limit
from tests.support.configuration import problems, resolved

GIB = 2**30


@pytest.mark.parametrize(
    ("file", "device", "message"),
    [
        (
            "chunk_size: 0",
            "cuda",
            "chunk_size must be positive, got 0. Set chunk_size to more than 0.",
        ),
        (
            "max_local_cpu_size: 0",
            "cuda",
            "max_local_cpu_size must be positive, got 0.0. Set max_local_cpu_size to more than 0.",
        ),
        (
            "max_local_cpu_size: .inf",
            "cuda",
            "max_local_cpu_size must be a size, got inf. "
            "Set max_local_cpu_size to a size in GB, for example 2.0 or 512Mi.",
        ),
        (
            "reserve_local_cpu_size: -1",
            "cuda",
            "reserve_local_cpu_size must be a size, got -1.0. "
            "Set reserve_local_cpu_size to a size in GB, for example 2.0 or 512Mi.",
        ),
        (
            "remote_config_url: http://service",
            "cuda",
            "remote_config_url would post the whole environment to that address. Leave it out.",
        ),
        (
            "internal_api_server_enabled: true",
            "cuda",
            "internal_api_server_enabled shows every variable, passwords included, to whoever "
            "asks. Leave it out.",
        ),
        *(
            (
                f"{name}: true",
                "cuda",
                f"{name} runs whatever code it is sent. Leave it out.",
            )
            for name in ("run_script_api_enabled",)
            if name in keys.table()  # LMCache 0.5.1 has no such key
        ),
        (
            "remote_serde: cachegen",
            "cuda",
            "remote_serde is cachegen, which knows a few models only and changes what it stores. "
            "Use naive.",
        ),
        (
            "remote_serde: kivi",
            "cuda",
            "remote_serde is kivi, which is not implemented in LMCache. Use naive.",
        ),
        (
            "remote_serde: zip",
            "cpu",
            "remote_serde is zip, which LMCache does not know. Use naive.",
        ),
        (
            "cache_policy: OLDEST",
            "cuda",
            "cache_policy is 'OLDEST', which LMCache does not know. "
            "Use one of LRU, LFU, FIFO, MRU.",
        ),
        (
            "pre_caching_hash_algorithm: md5",
            "cuda",
            "pre_caching_hash_algorithm is 'md5', which vLLM does not know: LMCache would use "
            "another, silently. Use sha256_cbor (the default).",
        ),
        (
            "local_disk: /cache",
            "cuda",
            "local_disk is not used without max_local_disk_size. Set max_local_disk_size too.",
        ),
        (
            "max_local_disk_size: 5",
            "cuda",
            "max_local_disk_size is not used without local_disk. Set local_disk too.",
        ),
        (
            "local_cpu: false",
            "cuda",
            "local_cpu is off and there is no other tier: nothing would ever be kept. "
            "Set another tier, or --offload=off.",
        ),
        (
            "use_layerwise: true",
            "cpu",
            "use_layerwise does not work on a CPU. Leave use_layerwise out.",
        ),
        (
            "save_unfull_chunk: true",
            "cpu",
            "save_unfull_chunk does not work on a CPU. Leave save_unfull_chunk out.",
        ),
        (
            "enable_controller: true",
            "cuda",
            "LMCache refuses it: controller_pull_url is required when enable_controller=True. "
            "Set what it needs, or leave it out.",
        ),
        (
            "save_unfull_chunk: false\nenable_blending: true",
            "cuda",
            "save_unfull_chunk is False, and LMCache makes it True for another setting. "
            "Leave save_unfull_chunk out.",
        ),
        (
            "enable_p2p: true",
            "cuda",
            "LMCache refuses it: assert self.enable_controller. "
            "Set what it needs, or leave it out.",
        ),
    ],
)
def test_refused(tmp_path: Path, file: str, device: str, message: str) -> None:
    assert problems(tmp_path, file, device=device) == [f"/lmcache.yaml:1: {message}"]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (
            "use_layerwise: true\nremote_url: redis://redis:6379\n",
            "/lmcache.yaml:1: use_layerwise does not work together with remote_url: a layer that "
            "fails to load is used. Leave out use_layerwise or remote_url.",
        ),
        (
            "use_layerwise: true\nlocal_disk: /cache\nmax_local_disk_size: 1\n",
            "/lmcache.yaml:1: use_layerwise does not work together with local_disk: a layer that "
            "fails to load is used. Leave out use_layerwise or local_disk.",
        ),
        (
            "save_unfull_chunk: true\nremote_url: redis://redis:6379\n",
            "/lmcache.yaml:1: save_unfull_chunk does not work together with remote_url: a chunk "
            "that fails to load is used. Leave out save_unfull_chunk or remote_url.",
        ),
        (
            "enable_blending: true\nlocal_disk: /cache\nmax_local_disk_size: 1\n",
            "/lmcache.yaml:1: enable_blending does not work together with local_disk: a chunk "
            "that fails to load is used. Leave out enable_blending or local_disk.",
        ),
        (
            "local_disk: /cache\nmax_local_disk_size: 5\nlocal_disk_path_sharding: by_size",
            "/lmcache.yaml:3: local_disk_path_sharding is 'by_size', and by_gpu is all there is. "
            "Leave out local_disk_path_sharding.",
        ),
        (
            "local_disk: /cache\nmax_local_disk_size: 5\nextra_config: {use_odirect: true}",
            "/lmcache.yaml:3: extra_config holds use_odirect, which the disk tier does not know. "
            "Leave out use_odirect.",
        ),
        (
            "remote_url: redis://redis:port\n",
            "/lmcache.yaml:1: remote_url is 'redis://redis:port', which is no URL (Port could not "
            "be cast to integer value as 'port'). Write SCHEME://HOST:PORT.",
        ),
        (
            "remote_url: redis-sentinel://redis:26379/main\nremote_connector: lmcache\n",
            "/lmcache.yaml:1: remote_url is 'redis-sentinel://redis:26379/main', which LMCache's "
            "own connector cannot use. Leave out remote_connector, or use redis:// or rediss://.",
        ),
        (
            "remote_url: redis://redis\nremote_connector: own\n",
            "/lmcache.yaml:2: remote_connector is 'own', which is none of kserve, lmcache. "
            "Use kserve (the default).",
        ),
        (
            "remote_url: redis://redis\nremote_lookup_timeout: 0\n",
            "/lmcache.yaml:2: remote_lookup_timeout must be positive, got 0.0. "
            "Set remote_lookup_timeout to more than 0.",
        ),
        (
            "remote_url: redis://redis\nremote_load_timeout: 600\n",
            "/lmcache.yaml:2: remote_load_timeout of 600 seconds is no deadline. "
            "Set remote_load_timeout to at most 60.",
        ),
        (
            "enable_routes: sleep,walk\n",
            "/lmcache.yaml:1: enable_routes has 'walk', which is none of docs, lora, profile, "
            "reset-cache, sleep, collective-rpc, server-info, weights, elastic, fault-tolerance, "
            "repository. Leave it out.",
        ),
        (
            "drain_timeout: -1\n",
            "/lmcache.yaml:1: drain_timeout must not be negative, got -1.0. "
            "Set drain_timeout to seconds, or to 0 for none.",
        ),
        (
            "max_concurrent_requests: 0\n",
            "/lmcache.yaml:1: max_concurrent_requests must be positive, got 0. "
            "Set max_concurrent_requests to more than 0.",
        ),
        (
            "log_format: xml\n",
            "/lmcache.yaml:1: log_format is 'xml', which is none of text, json. "
            "Use text (the default).",
        ),
        (
            "log_level: loud\n",
            "/lmcache.yaml:1: log_level is 'loud', which is none of debug, info, warning, error. "
            "Use info (the default).",
        ),
        (
            "remote_url: redis://redis\nremote_ttl: -1\n",
            "/lmcache.yaml:2: remote_ttl must not be negative, got -1. "
            "Set remote_ttl to seconds, or to 0 for no time to live.",
        ),
        (
            "remote_username: me\n",
            "/lmcache.yaml:1: remote_username is set and remote_url is not. "
            "Set remote_url, or leave remote_username out.",
        ),
        (
            "remote_url: lm://server:8080\nremote_username: me\n",
            "/lmcache.yaml:2: remote_username is for Redis and Valkey, and remote_url is lm://. "
            "Leave remote_username out.",
        ),
        (
            "remote_url: redis://redis:6379\nremote_ca_file: /ca.pem\n",
            "/lmcache.yaml:2: remote_ca_file is for TLS, and remote_url is redis://, which is not "
            "encrypted. Use rediss:// or valkeys://.",
        ),
        (
            "remote_url: rediss://redis:6379\nremote_key_file: /key.pem\n",
            "/lmcache.yaml:2: remote_key_file needs remote_cert_file as well. "
            "Set remote_cert_file.",
        ),
    ],
)
def test_refused_together(tmp_path: Path, file: str, message: str) -> None:
    assert problems(tmp_path, file) == [message]


def test_an_unknown_scheme_lists_the_known_ones(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "remote_url: redi://:hunter2@redis:6379")
    assert problem.startswith(
        "/lmcache.yaml:1: remote_url is 'redi://:***@redis:6379', a scheme that LMCache does not "
        "know: it would turn every tier off. Use one of audit://, "
    )
    assert {"lm://", "redis://", "s3://", "valkeys://"} <= set(
        problem.rstrip(".").partition("Use one of ")[2].split(", ")
    )


@pytest.mark.parametrize(
    "url",
    [
        "redis://redis:6379",
        "rediss://redis:6379/1",
        "unix:///run/redis.sock?db=1",
        "redis-cluster://a:6379,b:6379",
        "valkey://valkey:6379",
        "lm://server:8080",
        "fs://host:0/path",
        "s3://bucket.s3.region.amazonaws.com",
    ],
)
def test_known_schemes(tmp_path: Path, url: str) -> None:
    assert problems(tmp_path, f"remote_url: {url}") == []


def shape(**changes: Any) -> EngineShape:
    values = {
        "device": "cpu",
        "workers": 1,
        "block_size": 128,
        "kv_bytes_per_token": 2**15,
        "max_model_len": 2**15,  # one request is 1 GiB
        "max_num_seqs": 2,
    }
    return EngineShape(**{**values, **changes})


def checked(tmp_path: Path, file: str, gib: float, **changes: Any) -> tuple[list[str], list[str]]:
    configuration = resolved(tmp_path, file)
    local_tier.check(configuration, Limit(gib * GIB, "the container's limit"), shape(**changes))
    found = [str(problem).replace(str(tmp_path), "") for problem in configuration.problems]
    return found, configuration.notes


REMOTE = "remote_url: redis://redis:6379\n"
DISK = "local_disk: /cache\nmax_local_disk_size: 5\n"
STOCK = f"{REMOTE}remote_connector: lmcache\n"


def test_a_tier_larger_than_the_container(tmp_path: Path) -> None:
    file = "max_local_cpu_size: 2.5"
    found, _ = checked(tmp_path, file, 4, workers=2)
    assert found == [
        "/lmcache.yaml:1: max_local_cpu_size of 2.5 GiB for each of 2 workers is more than the "
        "4.0 GiB of the container's limit. Ask for less, raise the container's memory limit, or "
        "leave it out: the default is sized from the limit."
    ]
    assert checked(tmp_path, file, 5, workers=2) == ([], [])


def test_a_tier_that_a_request_cannot_pass_through(tmp_path: Path) -> None:
    found, _ = checked(tmp_path, f"{STOCK}max_local_cpu_size: 0.5", 8)
    assert found == [
        "/lmcache.yaml:3: max_local_cpu_size of 0.5 GiB is less than one request of 32768 tokens "
        "(1.00 GiB): LMCache would wait for ever to load it. Raise it (and the container's memory "
        "limit), or lower --max-model-len."
    ]
    # Nothing waits without a tier behind it, or with one of ours; it only holds less.
    assert checked(tmp_path, f"{REMOTE}max_local_cpu_size: 0.5", 8) == ([], [])
    assert checked(tmp_path, f"{DISK}max_local_cpu_size: 0.5", 8) == ([], [])
    assert checked(tmp_path, "max_local_cpu_size: 0.5", 8) == ([], [])


def test_a_tier_for_fewer_requests_than_may_run(tmp_path: Path) -> None:
    found, notes = checked(tmp_path, f"{STOCK}max_local_cpu_size: 1.5", 8)
    assert found == []
    assert notes == [
        "max_local_cpu_size of 1.5 GiB holds 1.5 requests of 32768 tokens (32768 bytes each), and "
        "--max-num-seqs lets 2 run: when more load at a time than fit, they wait for each other"
    ]
    assert checked(tmp_path, f"{STOCK}max_local_cpu_size: 2", 8) == ([], [])


def test_a_chunk_that_is_no_multiple_of_a_block(tmp_path: Path) -> None:
    found, _ = checked(tmp_path, "chunk_size: 200\nmax_local_cpu_size: 1", 8)
    assert found == [
        "/lmcache.yaml:1: chunk_size of 200 is no multiple of vLLM's block size 128. "
        "Use 256, or set --block-size."
    ]
    assert checked(tmp_path, "chunk_size: 384\nmax_local_cpu_size: 1", 8) == ([], [])


@pytest.mark.parametrize(
    ("gib", "device", "workers", "request_gib", "expected"),
    [
        (24, "cpu", 1, 0, 3.6),
        (24, "cuda", 1, 0, 9.6),
        (24, "cuda", 4, 0, 2.4),
        (1024, "cuda", 1, 0, 32.0),
        (0.5, "cpu", 1, 0, 0.125),
        (24, "cpu", 1, 8, 8.0),  # one request, although it is more than the share
        (24, "cpu", 1, 13, 3.6),  # too much for the container
        (24, "cpu", 2, 7, 1.8),
    ],
)
def test_default_size(
    gib: float, device: str, workers: int, request_gib: float, expected: float
) -> None:
    memory = Limit(gib * GIB, "the test")
    size = local_tier.default_size(memory, device, workers, int(request_gib * GIB))
    assert size.value == pytest.approx(expected, abs=0.0011)
    assert f"{gib:.1f} GiB, the test" in size.source
