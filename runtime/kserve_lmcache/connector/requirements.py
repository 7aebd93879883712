"""What the connector does not support. Everything is checked at construction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vllm.v1.kv_cache_interface import FullAttentionSpec, KVQuantMode, MLAAttentionSpec

from kserve_lmcache.identity.namespace import NAMESPACE

if TYPE_CHECKING:
    from lmcache.v1.config import LMCacheEngineConfig
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig


def check_supported(
    vllm_config: VllmConfig, kv_cache_config: KVCacheConfig, lmcache_config: LMCacheEngineConfig
) -> None:
    """Refuse an engine whose KV cache LMCache would get wrong.

    Raises:
        NotImplementedError: with every reason.
    """
    reasons = [
        *_of_the_server(vllm_config),
        *_of_the_kv_cache(kv_cache_config, vllm_config.device_config.device_type),
        *_of_the_configuration(lmcache_config, vllm_config.device_config.device_type),
    ]
    if reasons:
        raise NotImplementedError("; ".join(reasons))


def _of_the_server(vllm_config: VllmConfig) -> Iterator[str]:
    extra_config = vllm_config.kv_transfer_config.kv_connector_extra_config
    if NAMESPACE not in extra_config:
        # LMCache would put the model's path into the keys, which mixes up models.
        yield f"kv_connector_extra_config has no {NAMESPACE}"
    if extra_config.get("use_native"):
        yield "kv_connector_extra_config asks for vLLM's own copy of LMCache (use_native)"


def _of_the_kv_cache(kv_cache_config: KVCacheConfig, device: str) -> Iterator[str]:
    """LMCache knows one list of blocks for all layers, which keeps every token."""
    specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
    if [type(spec) for spec in specs] not in ([FullAttentionSpec], [MLAAttentionSpec]):
        kinds = ", ".join(type(spec).__name__ for spec in specs) or "no attention"
        yield f"the KV cache is not full attention alone: {kinds}"
        return
    (spec,) = specs
    # vLLM to 0.28 has compress_ratio in its place.
    if getattr(spec, "tokens_per_state", getattr(spec, "compress_ratio", 1)) != 1:
        yield "an entry of the KV cache stands for another number of tokens than one"
    if spec.kv_quant_mode not in (KVQuantMode.NONE, KVQuantMode.FP8_PER_TENSOR):
        yield f"the KV cache has scales between its values ({spec.kv_quant_mode.name})"
    if isinstance(spec, MLAAttentionSpec) and device == "cpu":
        yield "the model uses multi-head latent attention (MLA), which is not copied on a CPU"


def _of_the_configuration(config: LMCacheEngineConfig, device: str) -> Iterator[str]:
    if config.enable_blending:
        yield "enable_blending is set: LMCache loads KV that is not exact"
    if config.use_layerwise and device == "cpu":
        yield "use_layerwise is set: the copy path for a CPU copies all layers at once"
