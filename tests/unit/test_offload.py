from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest

from kserve_lmcache.cli.arguments import parse_arguments
from kserve_lmcache.engine_arguments import resolve_engine_arguments
from kserve_lmcache.errors import ConfigurationError, OffloadUnavailableError, UsageError
from kserve_lmcache.offload import Offload, give_up, plan_offload


def planned(*argv: str, **environ: str) -> tuple[Namespace, Offload, dict[str, str]]:
    args = parse_arguments(["--model_id=org/model", *argv])
    resolve_engine_arguments(args, environ)
    return args, plan_offload(args, environ), environ


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ('--kv-transfer-config={"kv_connector":"LMCacheConnectorV1","kv_role":"kv_both"}',),
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
    assert offload.enabled
    assert offload.settings["chunk_size"].value == 256
    assert offload.settings["pre_caching_hash_algorithm"].value == "sha256_cbor"
    assert "default: 15% of" in offload.settings["max_local_cpu_size"].source
    assert Path(environ["LMCACHE_CONFIG_FILE"]).exists()


def test_what_the_user_put_into_the_json_stays() -> None:
    wanted = {
        "kv_connector": "LMCacheConnectorV1",
        "kv_role": "kv_consumer",
        "kv_connector_extra_config": {"discard_partial_chunks": True},
    }
    args, _, _ = planned(f"--kv-transfer-config={json.dumps(wanted)}")
    assert args.kv_transfer_config.kv_role == "kv_consumer"
    assert args.kv_transfer_config.kv_connector_extra_config == {"discard_partial_chunks": True}


def test_another_connector_is_left_alone() -> None:
    args, offload, environ = planned(
        '--kv-transfer-config={"kv_connector":"NixlConnector","kv_role":"kv_both"}',
        LMCACHE_CHUNK_SIZE="64",
    )
    assert args.kv_transfer_config.kv_connector == "NixlConnector"
    assert not offload.enabled
    assert offload.reason == "--kv-transfer-config asks for NixlConnector"
    assert environ["LMCACHE_CHUNK_SIZE"] == "64"


def test_off_is_off() -> None:
    args, offload, _ = planned("--offload=off")
    assert args.kv_transfer_config is None
    assert (offload.enabled, offload.reason) == (False, "--offload=off")


def test_a_mistake_is_refused_or_turns_offloading_off() -> None:
    with pytest.raises(ConfigurationError, match="LMCACHE_CHUNK_SIZE: 'many' is not a whole"):
        planned(LMCACHE_CHUNK_SIZE="many")
    args, offload, _ = planned("--offload-required=false", LMCACHE_CHUNK_SIZE="many")
    assert args.kv_transfer_config is None
    assert "LMCACHE_CHUNK_SIZE" in offload.reason


def test_a_taken_worker_extension_is_refused() -> None:
    with pytest.raises(UsageError, match="--worker-extension-cls=my"):
        planned("--worker-extension-cls=my.Extension")


def test_giving_up_ends_the_start_unless_told_otherwise() -> None:
    args, _, _ = planned()
    with pytest.raises(OffloadUnavailableError, match="could not start: no memory"):
        give_up(args, "no memory")
    args, _, _ = planned("--offload-required=false")
    assert give_up(args, "no memory").reason == "no memory"
    assert args.kv_transfer_config is None
    assert args.worker_extension_cls == ""


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


def test_workers_share_the_cores() -> None:
    args = parse_arguments(["--model_id=org/a", "--tensor-parallel-size=3"])
    environ: dict[str, str] = {}
    resolve_engine_arguments(args, environ)
    shares = environ["VLLM_CPU_OMP_THREADS_BIND"].split("|")
    assert len(shares) == 3
    assert all(shares)
