"""The namespace of a model's entries, and which models have none."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.config import LoRAConfig, MultiModalConfig
from vllm.config.quantization import resolve_quantization_config

from kserve_lmcache.cli.arguments import parse_arguments
from kserve_lmcache.engine.arguments import create_engine_config, resolve_engine_arguments
from kserve_lmcache.engine.plan import plan_offload, resolve_configuration
from kserve_lmcache.engine.supported_models import unsupported
from kserve_lmcache.errors import IdentityError, UnsupportedModelError
from kserve_lmcache.identity.engine import EngineIdentity, model_path
from kserve_lmcache.identity.namespace import (
    NAMESPACE,
    _pictures,
    hashing_of,
    namespace,
    numerics_of,
    summarize,
)
from kserve_lmcache.server.announcement import INPUTS
from tests.support import models
from tests.support.models import MISTRAL, altered
from tests.support.server import MODEL, engine_environment


def engine(*flags: str, model: Path = MODEL) -> Any:
    args = parse_arguments([f"--model_id={model}", "--max-model-len=2048", *flags])
    resolve_engine_arguments(args, {})
    return create_engine_config(args)


def identity_of(*flags: str, model: Path = MODEL, **environ: str) -> EngineIdentity:
    args = parse_arguments([f"--model_id={model}", "--max-model-len=2048", *flags])
    resolve_engine_arguments(args, environ)
    offload, engine_config = plan_offload(args, resolve_configuration(args, environ), environ)
    assert offload.identity is not None
    handed_over = engine_config.kv_transfer_config.kv_connector_extra_config[NAMESPACE]
    assert handed_over == offload.identity.namespace
    return offload.identity


def name_of(*flags: str, model: Path = MODEL, **environ: str) -> str:
    return identity_of(*flags, model=model, **environ).namespace


@pytest.fixture(scope="module")
def plain() -> str:
    return name_of()


def test_no_character_is_special_in_a_key(plain: str) -> None:
    prefix, _, digest = plain.partition("-")
    assert prefix == "kv4"
    assert len(digest) == 32
    assert set(digest) <= set("0123456789abcdef")


def test_path_and_served_name_do_not_change_it(plain: str, tmp_path: Path) -> None:
    copy = models.copy(tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["_name_or_path"] = "organisation/another-name"
    (copy / "config.json").write_text(json.dumps(config))
    assert name_of("--model_name=other", model=copy) == plain


@pytest.mark.parametrize(
    "flags",
    [
        ("--dtype=float32",),
        (
            '--hf-overrides={"rope_parameters": {"rope_type": "linear", "factor": 2.0, '
            '"rope_theta": 100000}}',
        ),
        ('--hf-overrides={"rms_norm_eps": 1e-6}',),
        ("--block-size=64",),
        ("--lmcache", "chunk_size=512"),
        ("--lmcache", "pre_caching_hash_algorithm=sha256"),
    ],
)
def test_flags_that_change_the_numbers_or_the_keys_change_it(
    plain: str, flags: tuple[str, ...]
) -> None:
    assert name_of(*flags) != plain


def test_what_flags_quantize_changes_it() -> None:
    config = engine()
    plain = numerics_of(config)
    assert (plain["quantization"], plain["kv_cache_dtype"]) == ("None", "auto")

    def named() -> str:
        return namespace("content", numerics_of(config), {})

    names = [named()]
    for ignored in ("lm_head", "layers.0"):
        given = {"linear": "fp8_per_tensor", "ignore": [ignored]}
        config.model_config.quantization_config = resolve_quantization_config(None, given)
        names.append(named())
        config.model_config.quantization_config = resolve_quantization_config(None, given)
        assert named() == names[-1]  # no address of an object is in it
    for skipped in ("0", "1"):
        config.cache_config.kv_cache_dtype_skip_layers = [skipped]
        names.append(named())
    assert len(set(names)) == len(names)


def test_flags_for_adapters_change_it() -> None:
    config = engine()
    names = [namespace("content", numerics_of(config), {})]
    known = {field.name for field in dataclasses.fields(LoRAConfig)}
    for flag, value in (
        ("lora_dtype", config.model_config.dtype),
        ("lora_dtype", torch.float16),
        ("target_modules", ["q_proj"]),
        ("enable_moe_shared_loras", True),
    ):
        if flag not in known:  # a flag that not every version has
            continue
        config.lora_config = LoRAConfig(**{flag: value})
        names.append(namespace("content", numerics_of(config), {}))
    assert names[0] == names[1]  # the model's own data type
    assert len(set(names)) == len(names) - 1


def test_the_attention_kernel_of_a_cpu_changes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = []
    for amx in (False, True):  # AMX has a layout of its own for bfloat16 alone
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        names += [name_of("--dtype=bfloat16"), name_of("--dtype=float32")]
    assert len(set(names)) == 3
    assert names[1] == names[3]


def test_the_release_of_vllm_changes_it(plain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.__version__", "0.99.0")
    assert name_of() != plain


def test_the_hash_seed_changes_it(plain: str) -> None:
    assert name_of(PYTHONHASHSEED="0") == plain
    assert name_of(PYTHONHASHSEED="1") != plain


def test_every_input_has_a_name_in_the_announcement() -> None:
    draft = '--speculative-config={"method": "ngram", "num_speculative_tokens": 2}'
    identity = identity_of(draft, PYTHONHASHSEED="7")
    assert set(identity.inputs) == set(INPUTS) - {"namespace", "version", "mode", "pictures"}
    assert hashing_of({"mode": "multiprocess"}.get, {}).keys() <= set(INPUTS)
    assert _pictures(MultiModalConfig()).keys() <= set(INPUTS)
    assert identity.inputs["hash_seed"] == "7"
    assert identity.inputs["hash_algorithm"] == "sha256_cbor"
    assert identity.inputs["chunk_size"] == 256
    assert identity.inputs["workers"] == 1
    assert all(value is None or len(str(value)) < 32 for value in identity.inputs.values())


def test_the_announced_inputs_hold_no_path() -> None:
    parts = {"draft": ["eagle", "s3://user:word@store/draft"], "hf_config": {"a": 1}, "dtype": "x"}
    shown = summarize(parts)
    assert shown["dtype"] == "x"
    for name in ("draft", "hf_config"):
        assert set(str(shown[name])) <= set("0123456789abcdef")
        assert shown[name] != summarize({name: [parts[name]]})[name]


def test_the_weights_change_it(plain: str, tmp_path: Path) -> None:
    assert name_of(model=models.changed(tmp_path / "kv", ("k_proj",), 1)) != plain


def test_a_private_namespace_is_unique(plain: str) -> None:
    first, second = (name_of("--model-fingerprint=private") for _ in range(2))
    assert len({first, second, plain}) == 3


def test_every_part_changes_the_namespace() -> None:
    same = ("content", {"dtype": "a"}, {"chunk_size": 1})
    assert namespace(*same) == namespace(*same)
    others = [
        ("other", {"dtype": "a"}, {"chunk_size": 1}),
        ("content", {"dtype": "b"}, {"chunk_size": 1}),
        ("content", {"dtype": "a"}, {"chunk_size": 2}),
    ]
    assert len({namespace(*parts) for parts in [same, *others]}) == 4


def test_the_longest_length_matters_where_rope_is_scaled() -> None:
    assert numerics_of(engine())["max_model_len"] is None
    scaled = (
        '--hf-overrides={"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, '
        '"rope_theta": 100000}}'
    )
    assert numerics_of(engine(scaled))["max_model_len"] == 2048


def test_a_load_format_without_files_has_no_identity() -> None:
    with pytest.raises(IdentityError, match="--load-format=dummy"):
        model_path(engine("--load-format=dummy"))


QWEN = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({**MISTRAL, "sliding_window": None}, None),
        ({**MISTRAL, "sliding_window": 1024}, "sliding window"),
        ({**QWEN, "sliding_window": 1024, "use_sliding_window": False}, None),
        (
            {
                **QWEN,
                "sliding_window": 1024,
                "use_sliding_window": True,
                "max_window_layers": 0,
                "layer_types": ["sliding_attention"] * 30,
            },
            "sliding window",
        ),
    ],
)
def test_a_sliding_window_is_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str | None
) -> None:
    found = unsupported(engine(model=altered(tmp_path / "model", **changes)))
    assert bool(found) == (reason is not None), found
    if reason:
        assert reason in found[0]


@pytest.mark.parametrize(("pooling", "is_refused"), [("LAST", False), ("MEAN", True)])
def test_a_pooling_over_every_token_is_refused(pooling: str, is_refused: bool) -> None:
    how = (
        "--runner=pooling",
        "--convert=embed",
        f'--pooler-config={{"pooling_type": "{pooling}"}}',
    )
    found = unsupported(engine(*how))
    assert bool(found) == is_refused
    assert all("pools over every token" in reason for reason in found)


def test_an_unsupported_model_is_refused_or_served_without_offloading(tmp_path: Path) -> None:
    model = altered(tmp_path / "model", **MISTRAL, sliding_window=1024)
    with pytest.raises(UnsupportedModelError, match="sliding window"):
        name_of(model=model)
    args = parse_arguments([f"--model_id={model}", "--offload-required=false"])
    resolve_engine_arguments(args, {})
    offload, engine_config = plan_offload(args, resolve_configuration(args, {}), {})
    assert not offload.enabled
    assert "sliding window" in offload.reason
    assert engine_config.kv_transfer_config is None


KEYS = """
import torch
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.token_database import ChunkedTokenDatabase
config = LMCacheEngineConfig.from_defaults(pre_caching_hash_algorithm="sha256_cbor")
metadata = LMCacheMetadata(model_name="kv1-x", world_size=1, local_world_size=1, worker_id=0,
    local_worker_id=0, kv_dtype=torch.float32, kv_shape=(2, 2, 256, 3, 8))
database = ChunkedTokenDatabase(config, metadata)
for tag in (None, {"lmcache.tag.kserve": "a"}, {"lmcache.tag.kserve": "b"}):
    for _, _, key in database.process_tokens(tokens=list(range(512)), request_configs=tag):
        print(key.to_string())
"""


def test_two_processes_make_the_same_keys() -> None:
    environ = engine_environment(PYTHONHASHSEED="0", LMCACHE_TRACK_USAGE="false")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", KEYS], env=environ, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    keys = [line for line in outputs[0].splitlines() if line.startswith("kv1-x@")]
    assert keys == [line for line in outputs[1].splitlines() if line.startswith("kv1-x@")]
    assert len(set(keys)) == 6
    assert sum("@kserve%a" in key for key in keys) == 2
