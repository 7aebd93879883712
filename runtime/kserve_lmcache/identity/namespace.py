"""The namespace of a model's cached KV: what must be alike for an entry to be right.

A chunk's key holds the tokens, the engine's parallel layout and the KV's data type; LMCache puts
them there. The rest is here: the model's content, everything that changes the numbers it computes,
how tokens become keys, and how entries are laid out.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from kserve_lmcache.identity.files import without

if TYPE_CHECKING:
    from vllm.config import VllmConfig


# Where the server leaves the namespace for the connector: in its extra configuration.
NAMESPACE = "kserve_lmcache.namespace"
# The hash seed of a process whose environment names none; every replica has the same one.
DEFAULT_HASH_SEED = "0"
# Raise it when what is stored under a key changes: entries of two layouts never meet.
LAYOUT = 2
# What names a model, or the program that wrote its configuration, and is not computed with.
_NAMES = {"_name_or_path", "_commit_hash", "name_or_path", "transformers_version"}


def namespace(content: str, numerics: Mapping[str, Any], keys: Mapping[str, Any]) -> str:
    """The namespace as LMCache puts it into every key, in the place of the model's name.

    Args:
        content: digest of the model's files (:func:`kserve_lmcache.identity.fingerprint`).
        numerics: what else changes the KV of given tokens (:func:`numerics_of`).
        keys: how tokens become keys (:func:`hashing_of`).

    Returns:
        ``kv`` with the layout's number, and 128 bits in hexadecimal; no character of it means
        anything in a key.
    """
    parts = [LAYOUT, content, numerics, keys]
    return f"kv{LAYOUT}-{hashlib.sha256(_canonical(parts).encode()).hexdigest()[:32]}"


def hashing_of(setting: Callable[[str], Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """How tokens become keys: hash algorithm, hash seed (as text), chunk size.

    Args:
        setting: returns the value of a configuration key.
        environ: the environment of the engine's processes.
    """
    return {
        "hash_algorithm": setting("pre_caching_hash_algorithm"),
        "hash_seed": environ.get("PYTHONHASHSEED") or DEFAULT_HASH_SEED,
        "chunk_size": setting("chunk_size"),
    }


def numerics_of(config: VllmConfig) -> dict[str, Any]:
    """What changes a token's KV beside the model's files, from the engine's configuration.

    The model's configuration is taken as vLLM computes with it, so that ``--hf-overrides``, RoPE
    scaling and the sliding window are in it.
    """
    model, cache, speculative = config.model_config, config.cache_config, config.speculative_config
    return {
        "dtype": str(model.dtype),
        "quantization": str(model.quantization),
        "kv_cache_dtype": str(cache.cache_dtype),
        "hf_config": without(model.hf_config.to_dict(), _NAMES),
        # Some RoPE scalings (longrope, dynamic) choose their factors by it.
        "max_model_len": model.max_model_len if _scales_rope(model.hf_text_config) else None,
        "device": str(config.device_config.device_type),
        # LMCache's keys hold the number of workers, not whether they split layers or heads.
        "parallel": [
            config.parallel_config.tensor_parallel_size,
            config.parallel_config.pipeline_parallel_size,
        ],
        "block": _cpu_block(config),
        # A draft model's layers are stored beside the model's own.
        "draft": None if speculative is None else [speculative.method, str(speculative.model)],
    }


def summarize(parts: Mapping[str, Any]) -> dict[str, str | int | float | None]:
    """``parts`` as other servers may know them: a digest for what is long or may hold a path."""
    return {
        name: value
        if value is None or isinstance(value, str | int | float)
        else hashlib.sha256(_canonical(value).encode()).hexdigest()[:12]
        for name, value in parts.items()
    }


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _cpu_block(config: VllmConfig) -> list[Any] | None:
    """How a block lies in the memory of a CPU, where blocks are stored as they are.

    The attention kernel decides, by the processor: AMX, for one, has a layout of its own.
    """
    if config.device_config.device_type != "cpu":
        return None
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    model, cache = config.model_config, config.cache_config
    arguments = (model.dtype, cache.block_size, model.get_head_size(), str(cache.cache_dtype))
    try:
        kernel = _get_attn_isa(*arguments)
    except NotImplementedError:  # the engine will say so when it asks for the same
        kernel = ""
    return [platform.machine(), kernel, cache.block_size]


def _scales_rope(text_config: Any) -> bool:
    for name in ("rope_scaling", "rope_parameters"):
        scaling = getattr(text_config, name, None)
        if scaling and scaling.get("rope_type", scaling.get("type", "default")) != "default":
            return True
    return False
