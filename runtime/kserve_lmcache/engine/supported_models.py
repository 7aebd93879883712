"""Which models LMCache's in-process connector serves correctly. Others are not offloaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kserve_lmcache.config.engine_file import COPY
from kserve_lmcache.errors import UnsupportedModelError

if TYPE_CHECKING:
    from vllm.config import VllmConfig

# Data types of the KV cache that keep nothing beside the values, as LMCache's own kernels do.
# Others (nvfp4, int8_per_token_head, turboquant_…, fp8_ds_mla, …) pack scales between the values.
_PLAIN_DTYPES = {"auto", "float16", "bfloat16", "float32", "fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc"}
# Types of layers in a model's configuration that have KV of every token, or no KV.
_PLAIN = {"full_attention", "attention", "sparse", "dense", "moe", "mlp"}


def unsupported(config: VllmConfig) -> list[str]:
    """Every reason why this engine's KV cache must not be offloaded; empty when it may be."""
    return list(_reasons(config))


def check_supported(config: VllmConfig) -> None:
    """Refuse a model whose KV cache must not be offloaded.

    Raises:
        UnsupportedModelError: there is a reason. The error has all of them.
    """
    if reasons := unsupported(config):
        raise UnsupportedModelError(reasons)


def _reasons(config: VllmConfig) -> Iterator[str]:
    model = config.model_config
    text = model.hf_text_config
    if model.is_attention_free:
        yield "the model has no attention, and so no KV"
    elif model.is_hybrid or model.has_inner_state:
        yield "the model mixes attention with recurrent layers, whose state is not in the KV"
    elif others := _other_layers(text):
        yield f"the model has layers that are no full attention ({', '.join(others)})"
    if model.is_encoder_decoder:
        yield "the model has an encoder, whose output is not in the key"
    keeps_all = _mixes(text) and config.scheduler_config.disable_hybrid_kv_cache_manager
    if _slides(text) and not keeps_all:
        yield "the model's attention has a sliding window, and vLLM frees the blocks before it"
    if keeps_all and _shares_in_two_sizes(text):
        yield (
            "layers of two sizes use the KV of others, for which vLLM needs its hybrid KV-cache "
            "manager, and LMCache needs it off"
        )
    if getattr(model, "is_diffusion", False):
        yield "the model is a diffusion model, whose KV of a token depends on the tokens after it"
    if getattr(text, "attention_chunk_size", None):
        yield "the model's attention is chunked, and its KV lies in groups of blocks"
    if model.pooler_config is not None and not model.is_prefix_caching_supported:
        yield "the model pools over every token, and those that are loaded are not computed"
    if model.is_multimodal_model and model.is_mm_prefix_lm:
        yield "the KV of a picture's token depends on the tokens after it"
    if getattr(model.multimodal_config, "mm_encoder_attn_dtype", None):
        yield "--mm-encoder-attn-dtype has scales of its own, which are not in the key"
    if getattr(model, "enable_prompt_embeds", False):
        yield "--enable-prompt-embeds gives prompts without tokens, and keys are made of tokens"

    if _ignores_prefixes(config):
        yield (
            "the model uses multi-head latent attention (MLA), and vLLM's backend for this CPU "
            "computes a prompt without the KV before it"
        )
    yield from _reasons_of_flags(config)


def _ignores_prefixes(config: VllmConfig) -> bool:
    """Whether the attention backend leaves out KV that is cached before a prompt.

    That for the reference kernel of MLA does so (``CPU_MLA``), the one for AMX does not. With the
    former, vLLM turns chunked prefill and its own prefix cache off.
    """
    return bool(
        config.model_config.use_mla
        and config.device_config.device_type == "cpu"
        and not config.scheduler_config.enable_chunked_prefill
    )


def _reasons_of_flags(config: VllmConfig) -> Iterator[str]:
    """Reasons that lie in the engine's flags and not in the model."""
    cache, parallel = config.cache_config, config.parallel_config
    extra_config = getattr(config.kv_transfer_config, "kv_connector_extra_config", None) or {}
    if str(cache.cache_dtype) not in _PLAIN_DTYPES and extra_config.get(COPY) == "lmcache":
        yield f"--kv-cache-dtype={cache.cache_dtype} packs scales between the values of the KV"
    if getattr(cache, "calculate_kv_scales", False):  # vLLM 0.24
        yield "--calculate-kv-scales chooses scales of the KV by the first requests of a server"
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        yield "context parallelism splits the tokens of a block between workers"
    if cache.kv_offloading_size:
        yield "--kv-offloading-size puts a connector of vLLM's own in place of the server's"
    lora = config.lora_config
    if lora is not None and (lora.default_mm_loras or lora.enable_tower_connector_lora):
        yield "--default-mm-loras and --enable-tower-connector-lora are not tested"
    if getattr(config.attention_config, "use_non_causal", False):
        yield "with use_non_causal, the KV of a token depends on the tokens after it"


def _other_layers(text_config: object) -> list[str]:
    """The types of layers that no other rule covers."""
    kinds = {str(kind) for kind in getattr(text_config, "layer_types", None) or ()}
    return sorted(
        kind for kind in kinds - _PLAIN if not any(word in kind for word in ("sliding", "chunked"))
    )


def _slides(text_config: object) -> bool:
    if not getattr(text_config, "sliding_window", None):
        return False
    types = getattr(text_config, "layer_types", None)
    if types is not None:
        return any("sliding" in str(kind) for kind in types)
    return getattr(text_config, "use_sliding_window", True) is not False


def _mixes(text_config: object) -> bool:
    """Whether some layers have a sliding window and others have none.

    Without its hybrid KV-cache manager, vLLM keeps every token of all these layers.
    """
    types = getattr(text_config, "layer_types", None) or ()
    return {"full_attention", "sliding_attention"} <= {str(kind) for kind in types}


def _shares_in_two_sizes(text_config: Any) -> bool:
    """Whether some layers use the KV of others, and the heads of the layers differ in size.

    Without its hybrid KV-cache manager, vLLM 0.32 starts no engine of such a model (Gemma 4).
    """
    if not getattr(text_config, "num_kv_shared_layers", 0):
        return False
    values = text_config.to_dict()
    layers = (values.get("per_layer_config") or {}).values()  # transformers 5.16
    sizes = {values.get("head_dim"), values.get("global_head_dim")}
    return len(sizes.union(layer.get("head_dim") for layer in layers) - {None}) > 1
