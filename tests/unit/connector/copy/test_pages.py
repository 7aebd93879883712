"""The sizes of blocks are those of vLLM's configuration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MLAAttentionSpec,
    UniformTypeKVCacheSpecs,
)

from kserve_lmcache.connector.copy.pages import Page, pages_of


def full(**changes: Any) -> FullAttentionSpec:
    values = {"block_size": 16, "num_kv_heads": 2, "head_size": 8, "dtype": torch.bfloat16}
    return FullAttentionSpec(**{**values, **changes})


def config(*specs: Any) -> KVCacheConfig:
    groups = [
        KVCacheGroupSpec([f"{number} a", f"{number} b"], spec) for number, spec in enumerate(specs)
    ]
    return KVCacheConfig(9, [], groups)


def test_each_layer_of_a_group_has_a_page() -> None:
    pages = pages_of(config(full()))
    assert pages.layers == dict.fromkeys(("0 a", "0 b"), Page(16, 2 * 2 * 8 * 16 * 2, 2))
    assert (pages.blocks, pages.tokens) == (9, 16)
    assert pages.bytes == 2 * 1024
    assert pages.bytes_per_token == 128


def test_padding_is_no_part_of_a_page() -> None:
    assert pages_of(config(full(page_size_padded=4096))).bytes == 2 * 1024


def test_a_latent_vector_stands_for_both() -> None:
    spec = MLAAttentionSpec(block_size=16, num_kv_heads=1, head_size=576, dtype=torch.bfloat16)
    assert pages_of(config(spec)).layers["0 a"] == Page(16, 16 * 576 * 2, 1)


def test_layers_of_different_sizes_may_be_in_one_group() -> None:
    specs = {"0 a": full(), "0 b": full(num_kv_heads=4)}
    pages = pages_of(config(UniformTypeKVCacheSpecs(block_size=16, kv_cache_specs=specs)))
    assert [page.bytes for page in pages.layers.values()] == [1024, 2048]


def test_blocks_of_different_tokens_are_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"blocks of \[16, 32\] tokens"):
        pages_of(config(full(), full(block_size=32)))
    with pytest.raises(NotImplementedError, match="blocks of no tokens"):
        pages_of(config())
