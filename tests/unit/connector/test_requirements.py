"""Engines that the connector refuses, with every reason at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheSpec,
    KVQuantMode,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)

from kserve_lmcache.config.engine_file import COPY
from kserve_lmcache.connector.requirements import check_supported
from kserve_lmcache.identity.namespace import NAMESPACE

LMCACHES = {NAMESPACE: "model", COPY: "lmcache"}
SHAPE: Mapping[str, Any] = {
    "block_size": 32,
    "num_kv_heads": 2,
    "head_size": 32,
    "dtype": torch.float32,
}
FULL = FullAttentionSpec(**SHAPE)
MLA = MLAAttentionSpec(**{**SHAPE, "num_kv_heads": 1})


def check(
    *specs: KVCacheSpec,
    extra: Mapping[str, Any] = {NAMESPACE: "model"},
    **lmcache: bool,
) -> None:
    vllm_config: Any = SimpleNamespace(
        kv_transfer_config=SimpleNamespace(kv_connector_extra_config=extra),
    )
    groups = [KVCacheGroupSpec([f"layer {number}"], spec) for number, spec in enumerate(specs)]
    defaults = dict.fromkeys(("use_layerwise", "enable_blending", "save_unfull_chunk"), False)
    config: Any = SimpleNamespace(**{**defaults, **lmcache})
    check_supported(vllm_config, KVCacheConfig(8, [], groups), config)


def reasons(*specs: KVCacheSpec, **others: Any) -> str:
    with pytest.raises(NotImplementedError) as refused:
        check(*specs, **others)
    return str(refused.value)


@pytest.mark.parametrize("spec", [FULL, MLA])
def test_one_list_of_blocks_of_every_token_is_enough(spec: KVCacheSpec) -> None:
    check(spec)
    check(spec, extra=LMCACHES, use_layerwise=True, save_unfull_chunk=True)


def test_layers_of_different_sizes_may_share_blocks() -> None:
    """Which LMCache's own kernels do not know."""
    specs = {"layer 0": FULL, "other": replace(FULL, num_kv_heads=8)}
    spec = UniformTypeKVCacheSpecs(block_size=32, kv_cache_specs=specs)
    check(spec)
    assert "full attention alone: UniformTypeKVCacheSpecs" in reasons(spec, extra=LMCACHES)
    specs["layer 0"] = SlidingWindowSpec(**SHAPE, sliding_window=64)
    assert "full attention alone: UniformTypeKVCacheSpecs" in reasons(spec)


@pytest.mark.parametrize(
    "specs",
    [
        (),
        (FULL, FULL),
        (SlidingWindowSpec(**SHAPE, sliding_window=64),),
        (ChunkedLocalAttentionSpec(**SHAPE, attention_chunk_size=64),),
        (FULL, MambaSpec(block_size=32, shapes=((8, 8),), dtypes=(torch.float32,))),
    ],
)
def test_other_kv_caches_are_refused_whatever_the_model_says(specs: tuple[KVCacheSpec]) -> None:
    refused = reasons(*specs)
    assert "not full attention alone" in refused
    for spec in specs:
        assert type(spec).__name__ in refused


# Of vLLM 0.32, and of 0.24 and 0.28.
RATIO = "tokens_per_state" if hasattr(FULL, "tokens_per_state") else "compress_ratio"


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (replace(FULL, kv_quant_mode=KVQuantMode.INT8_PER_TOKEN_HEAD), "(INT8_PER_TOKEN_HEAD)"),
        (replace(FULL, kv_quant_mode=KVQuantMode.NVFP4), "(NVFP4)"),
    ],
)
def test_scales_between_the_values_are_bytes_that_lmcaches_kernels_do_not_know(
    spec: KVCacheSpec, reason: str
) -> None:
    check(spec)
    assert reason in reasons(spec, extra=LMCACHES)


def test_tokens_that_share_an_entry_are_refused() -> None:
    for extra in (LMCACHES, {NAMESPACE: "model"}):
        spec = replace(MLA, **{RATIO: 4})
        assert "another number of tokens than one" in reasons(spec, extra=extra)


def test_a_scale_for_the_whole_cache_is_enough() -> None:
    check(replace(FULL, kv_quant_mode=KVQuantMode.FP8_PER_TENSOR))


def every_spec(cls: type[KVCacheSpec] = KVCacheSpec) -> set[type[KVCacheSpec]]:
    return {cls}.union(*map(every_spec, cls.__subclasses__()))


@pytest.mark.parametrize("cls", sorted(every_spec(), key=lambda cls: cls.__name__))
def test_a_kind_of_kv_cache_that_is_not_known_is_refused(cls: type[KVCacheSpec]) -> None:
    spec = object.__new__(cls)
    vars(spec).update(vars(FULL))
    if cls in (FullAttentionSpec, MLAAttentionSpec):
        check(spec)
    else:
        assert f"not full attention alone: {cls.__name__}" in reasons(spec)


@pytest.mark.parametrize("name", ["use_layerwise", "save_unfull_chunk", "enable_blending"])
def test_what_is_no_copy_of_whole_blocks_of_all_layers_is_refused(name: str) -> None:
    assert f"{name} is set" in reasons(FULL, **{name: True})


def test_every_reason_is_in_one_error() -> None:
    refused = reasons(
        FULL,
        FULL,
        extra={"use_native": True},
        use_layerwise=True,
        enable_blending=True,
    )
    assert [reason.split()[0] for reason in refused.split("; ")] == [
        "kv_connector_extra_config",
        "kv_connector_extra_config",
        "the",
        "enable_blending",
        "use_layerwise",
    ]
