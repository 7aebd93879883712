from __future__ import annotations

import json
from pathlib import Path

import pytest

from kserve_lmcache.cli.arguments import parse_arguments
from kserve_lmcache.config import engine_file
from kserve_lmcache.config.resources import Cores
from kserve_lmcache.config.stores import Disk
from kserve_lmcache.config.tier_plugins import DISK_PLUGIN
from kserve_lmcache.engine import arguments
from kserve_lmcache.engine.arguments import resolve_engine_arguments
from kserve_lmcache.engine.plan import (
    differing_values,
    disabled_plan,
)
from kserve_lmcache.errors import (
    ConfigurationError,
    OffloadUnavailableError,
    UsageError,
)
from kserve_lmcache.identity.namespace import NAMESPACE
from tests.support.plans import planned


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ('--kv-transfer-config={"kv_connector":"LMCacheConnectorV1","kv_role":"kv_both"}',),
        (
            '--kv-transfer-config={"kv_connector":"LMCacheConnectorV1Dynamic","kv_role":"kv_both",'
            '"kv_connector_module_path":"lmcache.integration.vllm.lmcache_connector_v1"}',
        ),
    ],
)
def test_nothing_and_the_guides_json_give_our_connector(argv: tuple[str, ...]) -> None:
    args, offload, environ = planned(*argv)
    config = args.kv_transfer_config
    assert (config.kv_connector, config.kv_connector_module_path, config.kv_role) == (
        "KServeLMCacheConnector",
        "kserve_lmcache.connector",
        "kv_both",
    )
    assert offload.engine_file is not None
    configuration = offload.configuration
    assert configuration.get("chunk_size") == 256
    assert configuration.get("pre_caching_hash_algorithm") == "sha256_cbor"
    assert "default: 15% of" in configuration.source("max_local_cpu_size")
    assert Path(environ["LMCACHE_CONFIG_FILE"]) == offload.engine_file
    assert engine_file.read(offload.engine_file) == configuration.lmcache_values()


def test_what_the_user_put_into_the_json_stays() -> None:
    wanted = {
        "kv_connector": "LMCacheConnectorV1",
        "kv_role": "kv_consumer",
        "kv_connector_extra_config": {"discard_partial_chunks": True, "lmcache.chunk_size": 128},
    }
    args, offload, _ = planned(f"--kv-transfer-config={json.dumps(wanted)}")
    assert args.kv_transfer_config.kv_role == "kv_consumer"
    extra = args.kv_transfer_config.kv_connector_extra_config
    assert set(extra) == {"discard_partial_chunks", *OURS}
    assert extra["discard_partial_chunks"] is True
    assert args.kv_transfer_config.kv_load_failure_policy == "recompute"
    assert offload.configuration.get("chunk_size") == 128


# What the plan puts into the connector's extra configuration.
OURS = {
    NAMESPACE,
    engine_file.COPY,
    engine_file.MODE,
    engine_file.QUOTAS,
    engine_file.STATS_ARE_RECEIVED,
    engine_file.STEERED,
}
FIELD = {"spec_name": "TieringOffloadingSpec", "cpu_bytes_to_use": 2**29}


def field(**changes: object) -> str:
    """KServe's field, as its controller passes it."""
    extra = {**FIELD, "eviction_policy": "lru", **changes}
    wanted = {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": extra,
    }
    return f"--kv-transfer-config={json.dumps(wanted)}"


def test_kserves_field_gives_our_connector_and_its_tiers(tmp_path: Path) -> None:
    tiers = [{"type": "fs", "root_dir": str(tmp_path)}]
    args, offload, _ = planned(field(secondary_tiers=tiers))
    config = args.kv_transfer_config
    assert (config.kv_connector, config.kv_role) == ("KServeLMCacheConnector", "kv_both")
    assert set(config.kv_connector_extra_config) == OURS
    assert offload.engine_file is not None
    told = engine_file.read(offload.engine_file)
    assert (told["max_local_cpu_size"], told["cache_policy"]) == (0.5, "LRU")
    assert DISK_PLUGIN.decode(told["extra_config"])[0] == Disk((str(tmp_path),), 2**29)
    sources = {name: value.source for name, value in offload.configuration.redacted().items()}
    for name, of_field in (
        ("max_local_cpu_size", "kvCacheOffloading.cpu ("),
        ("cache_policy", "kvCacheOffloading.evictionPolicy ("),
        ("local_disk", "kvCacheOffloading.secondary ("),
    ):
        assert sources[name].startswith(of_field)


def test_a_field_that_cannot_be_honoured_is_refused_or_left_to_vllm() -> None:
    with pytest.raises(ConfigurationError, match="block_size is not honoured by this server"):
        planned(field(block_size=64))
    args, offload, _ = planned(field(block_size=64), "--offload-required=false")
    assert (args.kv_transfer_config, offload.enabled) == (None, False)
    args, offload, _ = planned(field(block_size=64), "--offload=off")
    assert args.kv_transfer_config.kv_connector == "OffloadingConnector"
    assert args.kv_transfer_config.kv_connector_extra_config["block_size"] == 64
    assert offload.reason == "--kv-transfer-config asks for OffloadingConnector"


def test_off_is_off() -> None:
    args, offload, _ = planned("--offload=off")
    assert args.kv_transfer_config is None
    assert (offload.enabled, offload.reason) == (False, "--offload is off")
    _, offload, _ = planned(KSERVE_LMCACHE_OFFLOAD="off")
    assert (offload.enabled, offload.reason) == (False, "KSERVE_LMCACHE_OFFLOAD is off")


def test_a_mistake_is_refused_or_turns_offloading_off() -> None:
    with pytest.raises(ConfigurationError, match="LMCACHE_CHUNK_SIZE: chunk_size 'many' is not"):
        planned(LMCACHE_CHUNK_SIZE="many")
    args, offload, _ = planned("--offload-required=false", LMCACHE_CHUNK_SIZE="many")
    assert args.kv_transfer_config is None
    assert "LMCACHE_CHUNK_SIZE" in offload.reason


def test_a_mistake_in_our_own_variables_is_refused_whatever_is_offloaded() -> None:
    for flags in (("--offload=off",), ("--offload-required=false",), ()):
        with pytest.raises(ConfigurationError, match="Did you mean KSERVE_LMCACHE_TENANT_HEADER"):
            planned(*flags, KSERVE_LMCACHE_TENANT_HEADR="X-Tenant-Id")
    _, offload, _ = planned("--offload=off", "--tenant-header=X", LMCACHE_CHUNK_SIZE="many")
    assert (offload.enabled, offload.configuration.get("tenant_header")) == (False, "X")
    _, offload, _ = planned("--offload-required=false", LMCACHE_CHUNK_SIZE="many")
    assert (offload.enabled, offload.required) == (False, False)
    assert offload.configuration.get("tenant_header") is None


def test_mistakes_of_all_kinds_come_together() -> None:
    with pytest.raises(ConfigurationError) as error:
        planned(
            "--lmcache",
            "chunk_size=100",
            LMCACHE_MAX_LOCAL_CPU_SIZE="1000000",
            LMCACHE_LOCAL_CPUS="true",
            LMCACHE_REMOTE_PASSWORD_FILE="/nonexistent",
            LMCACHE_REMOTE_URL="redis://redis:6379",
        )
    assert [problem.source for problem in error.value.problems] == [
        "LMCACHE_LOCAL_CPUS",
        "LMCACHE_MAX_LOCAL_CPU_SIZE",
        "--lmcache chunk_size",
        "LMCACHE_REMOTE_PASSWORD_FILE",
    ]


def test_a_disk_tier_is_ours_and_must_be_possible_here(tmp_path: Path) -> None:
    cache, remote = tmp_path / "cache", {"LMCACHE_REMOTE_URL": "redis://redis:6379"}
    disk = {"LMCACHE_LOCAL_DISK": f"file://{cache}/", "LMCACHE_MAX_LOCAL_DISK_SIZE": "5Gi"}
    _, offload, _ = planned("--remote-connector=lmcache", **disk, **remote)
    assert offload.engine_file is not None
    told = engine_file.read(offload.engine_file)
    assert told["remote_storage_plugins"] == [DISK_PLUGIN.name]
    assert "local_disk" not in told
    assert DISK_PLUGIN.decode(told["extra_config"])[0] == Disk((f"{cache}/",), 5 * 2**30)
    assert offload.configuration.redacted()["local_disk"].value == f"{cache}/"
    assert not cache.exists()
    for change, message in (
        ({"LMCACHE_LOCAL_DISK": "/proc/cache"}, "LMCACHE_LOCAL_DISK: local_disk /proc/cache can"),
        ({"LMCACHE_MAX_LOCAL_DISK_SIZE": "1Mi"}, "of 0.000976562 GiB is less than one chunk"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            planned(**{**disk, **change})


def test_what_the_engine_uses_instead_is_told_without_secrets(tmp_path: Path) -> None:
    path = tmp_path / "engine.yaml"
    told = {"chunk_size": 64, "remote_url": "redis://:hunter2@redis:6379", "local_cpu": True}
    engine_file.write(told, None, path)
    assert differing_values(path, {**told, "other": 1}) == []
    used = {"chunk_size": 128, "remote_url": "redis://:other@redis:6379", "local_cpu": True}
    assert differing_values(path, used) == [
        "chunk_size is 128 where 64 was asked for",
        "remote_url is 'redis://:***@redis:6379' where 'redis://:***@redis:6379' was asked for",
    ]


def test_a_worker_extension_of_the_users_own_is_kept() -> None:
    args, _, _ = planned("--worker-extension-cls=my.Extension")
    assert args.worker_extension_cls == "my.Extension"


@pytest.mark.parametrize("flag", ["", "--disable-log-stats"])
def test_the_connector_knows_whether_vllms_stats_reach_the_server(flag: str) -> None:
    args, _, _ = planned(*filter(None, [flag]))
    extra = args.kv_transfer_config.kv_connector_extra_config
    assert extra[engine_file.STATS_ARE_RECEIVED] is (not flag)


def test_giving_up_ends_the_start_unless_told_otherwise() -> None:
    args, offload, _ = planned()
    with pytest.raises(OffloadUnavailableError, match="could not start: no memory"):
        disabled_plan(args, offload, "no memory")
    args, offload, _ = planned("--offload-required=false")
    without, engine_config = disabled_plan(args, offload, "no memory")
    assert (without.enabled, without.reason) == (False, "no memory")
    assert engine_config.kv_transfer_config is args.kv_transfer_config is None


@pytest.mark.parametrize(
    ("argv", "model"),
    [
        (["--model_id=org/a"], "org/a"),
        (["org/b"], "org/b"),
        (["--model=org/c"], "org/c"),
        (["--model_id=org/a", "--model_dir=/usr"], "org/a"),
        (["--model_dir=/usr"], "/usr"),
    ],
)
def test_the_model(argv: list[str], model: str) -> None:
    args = parse_arguments(argv)
    resolve_engine_arguments(args, {})
    assert args.model == model


def test_no_model_says_what_to_give() -> None:
    args = parse_arguments(["--model_dir=/nonexistent"])
    with pytest.raises(UsageError, match="there is no model: --model_id is not given"):
        resolve_engine_arguments(args, {})


def test_nothing_that_the_user_set_is_replaced() -> None:
    args = parse_arguments(
        [
            "--model_id=org/a",
            "--tensor-parallel-size=3",
            "--gpu-memory-utilization=0.3",
            "--served-model-name",
            "one",
            "two",
            "--port=9999",
        ]
    )
    environ = {"VLLM_CPU_OMP_THREADS_BIND": "0|1|0"}
    resolve_engine_arguments(args, environ)
    assert args.tensor_parallel_size == 3
    assert args.gpu_memory_utilization == 0.3
    assert args.kv_cache_memory_bytes is None
    assert (args.model_name, args.served_model_name) == ("one", ["one", "two"])
    assert args.http_port == 9999
    assert environ["VLLM_CPU_OMP_THREADS_BIND"] == "0|1|0"


PLACES, THREADS = "VLLM_CPU_OMP_THREADS_BIND", "OMP_NUM_THREADS"
OWN = Cores(4, (2, 3, 8, 9), "the process's CPU affinity")
QUOTA = Cores(4, (), "the container's quota (cpu.max 400000 100000)")


@pytest.mark.parametrize(
    ("cores", "workers", "given", "expected"),
    [
        (OWN, 1, {}, {PLACES: "2,3,8,9"}),
        (OWN, 3, {}, {PLACES: "2,9|3|8"}),
        (OWN, 5, {}, {PLACES: "2|3|8|9|2"}),
        (QUOTA, 1, {}, {PLACES: "nobind", THREADS: "4"}),
        (QUOTA, 3, {}, {PLACES: "nobind", THREADS: "1"}),
        (QUOTA, 8, {}, {PLACES: "nobind", THREADS: "1"}),
        # What the user set stays.
        (OWN, 1, {THREADS: "3"}, {PLACES: "nobind", THREADS: "3"}),
        (QUOTA, 1, {THREADS: "3"}, {PLACES: "nobind", THREADS: "3"}),
        (QUOTA, 1, {PLACES: "auto"}, {PLACES: "auto"}),
        (QUOTA, 1, {PLACES: "", THREADS: ""}, {PLACES: "nobind", THREADS: "4"}),
    ],
)
def test_threads_are_limited_in_number_and_bound_to_cores_of_their_own_alone(
    monkeypatch: pytest.MonkeyPatch,
    cores: Cores,
    workers: int,
    given: dict[str, str],
    expected: dict[str, str],
) -> None:
    monkeypatch.setattr(arguments, "cpu_cores", lambda: cores)
    args = parse_arguments(["--model_id=org/a", f"--tensor-parallel-size={workers}"])
    environ = dict(given)
    resolve_engine_arguments(args, environ)
    assert {name: environ[name] for name in (PLACES, THREADS) if name in environ} == expected


@pytest.mark.parametrize("offload", ["on", "off"])
@pytest.mark.parametrize(
    ("argv", "environ", "asked"),
    [
        (["--api-key=k"], {}, "API keys"),
        ([], {"VLLM_API_KEY": "k"}, "API keys"),
        (["--ssl-cert-reqs=2"], {}, "certificates of clients"),
    ],
)
def test_grpc_opens_no_door_beside_the_one_with_a_key(
    offload: str, argv: list[str], environ: dict[str, str], asked: str
) -> None:
    flags = ["--enable_grpc=true", "--enable-routes=repository", f"--offload={offload}", *argv]
    with pytest.raises(ConfigurationError, match=f"asks for no {asked}"):
        planned(*flags, **environ)
    for left_out in ("--enable_grpc=true", "--enable-routes=repository", *argv):
        planned(*(flag for flag in flags if flag != left_out))


@pytest.mark.parametrize("offload", ["on", "off"])
@pytest.mark.parametrize(
    "flag", ["--body-timeout=0", "--enable-routes=nothing", "--tenant-required=true"]
)
def test_a_setting_of_the_server_is_refused_with_offloading_and_without(
    offload: str, flag: str
) -> None:
    with pytest.raises(ConfigurationError, match=flag.split("=")[0]):
        planned(flag, f"--offload={offload}")


def test_the_workers_are_told_of_the_routes_and_the_quotas() -> None:
    flags = ("--tenant-header=X-Tenant-Id", "--tenant-local-quota-size=0.5")
    args, _, _ = planned("--enable-routes=cache,sleep", *flags)
    extra = args.kv_transfer_config.kv_connector_extra_config
    assert extra[engine_file.STEERED] is True
    assert extra[engine_file.QUOTAS] == {"local_cpu": 2**29}
    args, _, _ = planned("--enable-routes=sleep")
    extra = args.kv_transfer_config.kv_connector_extra_config
    assert (extra[engine_file.STEERED], extra[engine_file.QUOTAS]) == (False, {})


@pytest.mark.parametrize(
    ("flags", "capability", "is_told"),
    [
        ((), "AVX2", True),
        (("--offload=off", "--dtype=float16"), "AVX2", True),
        (("--dtype=float32",), "AVX2", False),
        ((), "AVX512", False),
        ((), "DEFAULT", False),  # another kind of CPU, of which nothing was measured
    ],
)
def test_a_data_type_that_the_cpu_computes_slowly_is_told(
    flags: tuple[str, ...],
    capability: str,
    is_told: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    planned(*flags)
    assert ("--dtype=float32 is faster" in caplog.text) == is_told
