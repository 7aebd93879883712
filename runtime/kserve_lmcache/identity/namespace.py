"""The namespace of a model's cached KV.

LMCache makes the key of a chunk from these parts (``CacheEngineKey`` in ``lmcache/utils.py``): the
name of the model, the number of workers and the worker's number, the hash of the tokens, and the
data type of the KV. A connector tag adds the adapter and the tenant (``connector/isolation.py``).
LMCache takes the path for the name of the model. The namespace replaces that name. A digest of
these parts is in it:

- the content of the model's files (:mod:`.fingerprint`): a path does not identify a model;
- what else changes the KV of given tokens (:func:`numerics_of`): flags change the numbers;
- the hash of tokens (:func:`hashing_of`): one hash value may stand for different tokens in two
  schemes, and a chunk of another size has another length;
- the version of the stored bytes (:data:`LAYOUT`).

What the bytes of a block depend on beside these, the worker appends when it has its KV cache.

Not in it: the served name, the path, and the version of LMCache.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from kserve_lmcache.compat.vllm import attention_choice, cpu_attention_kernel, release
from kserve_lmcache.identity.files import without

if TYPE_CHECKING:
    from vllm.config import VllmConfig


# The key of the connector's extra configuration that holds the namespace.
NAMESPACE = "kserve_lmcache.namespace"
# The extra argument of a request that holds the digest of its adapter's content. The server sets
# it; a request of an adapter without it may not use the cache.
ADAPTER = "kserve_lmcache.adapter"
# The extra argument that holds the request's tenant, which the salt contains too. The server sets
# it, so that all chunks of a tenant can be found.
TENANT = "kserve_lmcache.tenant"
# The hash seed where the environment sets none. Every replica must have the same seed.
DEFAULT_HASH_SEED = "0"
# The version of the stored bytes. A change of the bytes raises it, so that keys differ.
LAYOUT = 4
# Settings of vLLM, and packages, that turn a picture into what the model sees.
_PICTURE_SETTINGS = (
    "media_io_kwargs",
    "mm_processor_kwargs",
    "mm_device_do_normalize",
    "mm_encoder_tp_mode",
    "mm_encoder_attn_backend",
)
_PICTURE_PACKAGES = ("transformers", "torchvision", "pillow")
# Settings that name the model or the program that wrote them. The KV does not depend on them.
_ORIGIN_SETTINGS = {"_name_or_path", "_commit_hash", "name_or_path", "transformers_version"}


def namespace(content: str, numerics: Mapping[str, Any], hashing: Mapping[str, Any]) -> str:
    """The namespace, which LMCache puts into every key as the model's name.

    Args:
        content: the digest of the model's files.
        numerics: the result of :func:`numerics_of`.
        hashing: the result of :func:`hashing_of`.

    Returns:
        ``kv``, the layout, a dash, and 128 bits in hexadecimal. No character is special in a key.
    """
    parts = [LAYOUT, content, numerics, hashing]
    return f"kv{LAYOUT}-{hashlib.sha256(_canonical(parts).encode()).hexdigest()[:32]}"


def hashing_of(setting: Callable[[str], Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """The settings of the hash that turns tokens into keys, and of what a key stands for.

    Args:
        setting: returns the value of a configuration key.
        environ: the environment of the engine's processes.
    """
    return {
        "hash_algorithm": setting("pre_caching_hash_algorithm"),
        "hash_seed": environ.get("PYTHONHASHSEED") or DEFAULT_HASH_SEED,
        "chunk_size": setting("chunk_size"),
        "copy": setting("copy"),
        # The modes name their chunks in other ways.
        **({"mode": mode} if (mode := setting("mode")) != "in-process" else {}),
    }


def numerics_of(config: VllmConfig) -> dict[str, Any]:
    """Everything but the model's files that changes the KV of given tokens, and why.

    The model's configuration is the one with which vLLM computes. It includes ``--hf-overrides``,
    RoPE scaling and the sliding window.
    """
    model, cache, speculative = config.model_config, config.cache_config, config.speculative_config
    return {
        # Releases correct models, and round in other ways: docs/design/cache-keys.md has a table.
        "vllm": release(),
        "dtype": _with(str(model.dtype), _adapters(config)),
        # Which layers are quantized how, where flags say so and not the model's configuration.
        "quantization": _with(str(model.quantization), getattr(model, "quantization_config", None)),
        "kv_cache_dtype": _with(
            str(cache.cache_dtype), sorted(getattr(cache, "kv_cache_dtype_skip_layers", ()))
        ),
        "hf_config": without(model.hf_config.to_dict(), _ORIGIN_SETTINGS),
        # Some RoPE scalings (longrope, dynamic) choose their factors by the longest length.
        "max_model_len": model.max_model_len if _scales_rope(model.hf_text_config) else None,
        "device": str(config.device_config.device_type),
        # LMCache's key holds the number of workers, not whether workers split layers or heads.
        "parallel": [
            config.parallel_config.tensor_parallel_size,
            config.parallel_config.pipeline_parallel_size,
        ],
        "block": _block(config),
        # The layers of a draft model are stored beside the layers of the model.
        "draft": None if speculative is None else [speculative.method, str(speculative.model)],
        **_pictures(model.multimodal_config),
    }


def summarize(parts: Mapping[str, Any]) -> dict[str, str | int | float | None]:
    """``parts`` for the eyes of other servers. A digest replaces each list and each mapping.

    These are long, or may hold a path.
    """
    return {
        name: value
        if value is None or isinstance(value, str | int | float)
        else hashlib.sha256(_canonical(value).encode()).hexdigest()[:12]
        for name, value in parts.items()
    }


def _with(value: str, more: Any) -> str | list[str]:
    """``value``, and ``more`` where there is more."""
    return [value, str(more)] if more else value


def _adapters(config: VllmConfig) -> list[str]:
    """How flags change the KV of requests with an adapter. The keys have the adapter itself."""
    lora, dtype = config.lora_config, config.model_config.dtype
    if lora is None:
        return []
    other_dtype = [] if lora.lora_dtype in (dtype, "auto") else [str(lora.lora_dtype)]
    shared = ["shared factors"] if getattr(lora, "enable_moe_shared_loras", False) else []
    return [*other_dtype, *sorted(lora.target_modules or ()), *shared]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _block(config: VllmConfig) -> list[Any]:
    """What decides the bytes of a block, as far as it is known before the engine starts.

    On a CPU the attention kernel decides, and the processor decides the kernel: the kernel for
    AMX, for example, has a layout of its own. On another device vLLM's worker chooses the backend
    and its layout. The worker appends a digest of its choice to the namespace
    (``connector/worker.py``).
    """
    cache = config.cache_config
    if config.device_config.device_type != "cpu":
        return [*attention_choice(config), cache.block_size]
    model = config.model_config
    head_size = model.get_head_size()
    try:
        kernel = cpu_attention_kernel(
            model.dtype, cache.block_size, head_size, str(cache.cache_dtype)
        )
    except NotImplementedError:  # the engine fails with the same error when it starts
        kernel = ""
    return [platform.machine(), kernel, cache.block_size]


def _pictures(settings: Any) -> dict[str, Any]:
    """What turns a picture into the numbers that the model sees. The keys have the picture's hash.

    The settings of a request, such as ``mm_processor_kwargs``, are in that hash.
    """
    if settings is None:
        return {}
    values = [str(getattr(settings, name, None)) for name in _PICTURE_SETTINGS]
    return {"pictures": [*values, *map(_release_of, _PICTURE_PACKAGES)]}


def _release_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _scales_rope(text_config: Any) -> bool:
    for name in ("rope_scaling", "rope_parameters"):
        scaling = getattr(text_config, name, None)
        if scaling and scaling.get("rope_type", scaling.get("type", "default")) != "default":
            return True
    return False
