"""What the connector does not support. Everything is checked at construction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vllm.v1.kv_cache_interface import FullAttentionSpec, KVQuantMode, MLAAttentionSpec

from kserve_lmcache.config.engine_file import COPY
from kserve_lmcache.connector.copy.pages import specs_of
from kserve_lmcache.identity.namespace import NAMESPACE

if TYPE_CHECKING:
    from lmcache.v1.config import LMCacheEngineConfig
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

# Types of specifications. Subtypes of them may drop tokens.
_KEEPS_EVERY_TOKEN = {FullAttentionSpec, MLAAttentionSpec}
_PLAIN_VALUES = {KVQuantMode.NONE, KVQuantMode.FP8_PER_TENSOR}


def check_supported(
    vllm_config: VllmConfig,
    kv_cache_config: KVCacheConfig,
    lmcache_config: LMCacheEngineConfig | None = None,
) -> None:
    """Refuse an engine whose KV cache LMCache would get wrong.

    Args:
        vllm_config: the engine's.
        kv_cache_config: the engine's.
        lmcache_config: of the cache engine in the workers' processes, if there is one.

    Raises:
        NotImplementedError: with every reason.
    """
    copies_blocks = copy_of(vllm_config) == "blocks"
    reasons = [
        *_of_the_server(vllm_config),
        *_of_the_kv_cache(kv_cache_config, copies_blocks),
        *_of_the_configuration(lmcache_config, copies_blocks),
    ]
    if reasons:
        raise NotImplementedError("; ".join(reasons))


def copy_of(vllm_config: VllmConfig) -> str:
    """The setting ``copy``: ``blocks`` or ``lmcache``."""
    extra_config = vllm_config.kv_transfer_config.kv_connector_extra_config
    return str(extra_config.get(COPY, "blocks"))


def _of_the_server(vllm_config: VllmConfig) -> Iterator[str]:
    extra_config = vllm_config.kv_transfer_config.kv_connector_extra_config
    if NAMESPACE not in extra_config:
        # LMCache would put the model's path into the keys, which mixes up models.
        yield f"kv_connector_extra_config has no {NAMESPACE}"
    if extra_config.get("use_native"):
        yield "kv_connector_extra_config asks for vLLM's own copy of LMCache (use_native)"


def _of_the_kv_cache(kv_cache_config: KVCacheConfig, copies_blocks: bool) -> Iterator[str]:
    """LMCache knows one list of blocks for all layers, which keeps every token."""
    groups = kv_cache_config.kv_cache_groups
    # LMCache's kernels take all layers for alike.
    specs = (
        [spec for _, spec in specs_of(kv_cache_config)]
        if copies_blocks
        else [group.kv_cache_spec for group in groups]
    )
    if len(groups) != 1 or not {type(spec) for spec in specs} <= _KEEPS_EVERY_TOKEN:
        kinds = ", ".join(type(group.kv_cache_spec).__name__ for group in groups)
        yield f"the KV cache is not full attention alone: {kinds or 'no attention'}"
        return
    # vLLM to 0.28 has compress_ratio in its place.
    if any(getattr(s, "tokens_per_state", getattr(s, "compress_ratio", 1)) != 1 for s in specs):
        yield "an entry of the KV cache stands for another number of tokens than one"
    modes = {spec.kv_quant_mode for spec in specs} - _PLAIN_VALUES
    if modes and not copies_blocks:
        names = ", ".join(sorted(mode.name for mode in modes))
        yield f"the KV cache has scales between its values ({names})"


def _of_the_configuration(config: LMCacheEngineConfig | None, copies_blocks: bool) -> Iterator[str]:
    if config is None:
        return
    if config.enable_blending:
        yield "enable_blending is set: LMCache loads KV that is not exact"
    for name in ("use_layerwise", "save_unfull_chunk"):
        if copies_blocks and getattr(config, name):
            yield f"{name} is set: whole blocks of all layers are copied at once"
