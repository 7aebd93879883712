"""Models that LMCache would get wrong, or that were not tried with it, are recognised."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoConfig
from vllm.config import VllmConfig
from vllm.config.model_arch import ModelArchitectureConfig
from vllm.model_executor.models import registry

from kserve_lmcache.cli.arguments import parse_arguments
from kserve_lmcache.config.engine_file import COPY
from kserve_lmcache.engine.arguments import create_engine_config, resolve_engine_arguments
from kserve_lmcache.engine.supported_models import unsupported
from kserve_lmcache.errors import KServeLMCacheError
from tests.support.architectures import ARCHITECTURES, Architecture
from tests.support.server import MODEL

SIZES: Mapping[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
}
WINDOW, CHUNKED = "has a sliding window", "is chunked"
BY_VLLM = "vLLM refuses it itself"
NONE, MIXED = "has no attention", "recurrent layers"
# As transformers and vLLM name them; Qwen-VL and LLaVA need torchvision, which a CPU's set lacks.
KINDS = {
    "a window in all layers": (
        "gemma3_text",
        "Gemma3ForCausalLM",
        {**SIZES, "layer_types": ["sliding_attention"] * 4},
        WINDOW,
    ),
    "Mistral 0.1": ("mistral", "MistralForCausalLM", {**SIZES, "sliding_window": 64}, WINDOW),
    "Phi-3": ("phi3", "Phi3ForCausalLM", {**SIZES, "sliding_window": 64}, WINDOW),
    "Llama 4": ("llama4_text", "Llama4ForCausalLM", SIZES, CHUNKED),
    "Mamba": ("mamba", "MambaForCausalLM", {**SIZES, "intermediate_size": None}, NONE),
    "Jamba": ("jamba", "JambaForCausalLM", SIZES, MIXED),
    "Falcon-H1": ("falcon_h1", "FalconH1ForCausalLM", SIZES, MIXED),
    "Qwen3-Next": ("qwen3_next", "Qwen3NextForCausalLM", SIZES, MIXED),
    "LFM2": ("lfm2", "Lfm2ForCausalLM", SIZES, MIXED),
    # By vLLM's way for models of transformers that it does not know.
    "MiniMax": ("minimax", "MiniMaxForCausalLM", SIZES, "no full attention (linear_attention)"),
    "Gemma 4 with shared KV": (
        "gemma4_text",
        "Gemma4ForCausalLM",
        {
            **SIZES,
            "sliding_window": 64,
            "global_head_dim": 64,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
        },
        "layers of two sizes use the KV of others",
    ),
    "Whisper": ("whisper", "WhisperForConditionalGeneration", {}, "has an encoder"),
    # On a processor with AMX, whose backend attends to cached KV, this one is not refused.
    "DeepSeek-V2": (
        "deepseek_v2",
        "DeepseekV2ForCausalLM",
        {**SIZES, "num_key_value_heads": 4},
        "(MLA), and vLLM's backend for this CPU",
    ),
}


@pytest.fixture(autouse=True)
def _classes_are_looked_at_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """VLLM imports itself for each model in a process of its own, for CUDA's sake."""
    monkeypatch.setattr(registry, "_run_in_subprocess", lambda look: look())


@pytest.fixture(scope="module")
def plain() -> VllmConfig:
    """An engine's configuration that nothing speaks against."""
    args = parse_arguments([f"--model_id={MODEL}", "--max-model-len=256"])
    resolve_engine_arguments(args, {})
    return create_engine_config(args)


def reasons(directory: Path, model_type: str, name: str, sizes: Mapping[str, Any]) -> str:
    config = AutoConfig.for_model(model_type, **sizes)
    config.architectures = [name]
    config.save_pretrained(directory)
    connector = '--kv-transfer-config={"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both"}'
    flags = ("--max-model-len=256", "--skip-tokenizer-init", connector)
    args = parse_arguments([f"--model_id={directory}", *flags])
    resolve_engine_arguments(args, {})
    try:
        return "; ".join(unsupported(create_engine_config(args)))
    except KServeLMCacheError as error:
        # A vLLM without sizes by layer refuses such a model of the installed transformers itself.
        if hasattr(ModelArchitectureConfig, "__getitem__") or "per-layer" not in str(error):
            raise
        return BY_VLLM


@pytest.mark.parametrize(("model_type", "name", "sizes", "reason"), KINDS.values(), ids=KINDS)
def test_a_kind_of_model_is_refused(
    tmp_path: Path, model_type: str, name: str, sizes: Mapping[str, Any], reason: str
) -> None:
    found = reasons(tmp_path, model_type, name, sizes)
    assert found == BY_VLLM or reason in found


@pytest.mark.parametrize(
    ("section", "name", "value", "reason"),
    [
        ("cache_config", "kv_offloading_size", 4.0, "--kv-offloading-size puts a connector"),
        ("cache_config", "calculate_kv_scales", True, "by the first requests of a server"),
        ("parallel_config", "decode_context_parallel_size", 2, "context parallelism"),
        ("parallel_config", "prefill_context_parallel_size", 2, "context parallelism"),
        ("attention_config", "use_non_causal", True, "on the tokens after it"),
        ("model_config", "is_diffusion", True, "is a diffusion model"),
    ],
)
def test_a_flag_is_refused(
    plain: VllmConfig,
    monkeypatch: pytest.MonkeyPatch,
    section: str,
    name: str,
    value: Any,
    reason: str,
) -> None:
    assert not unsupported(plain)
    # Not validated: vLLM refuses some of these on a CPU.
    monkeypatch.setitem(vars(getattr(plain, section)), name, value)
    (found,) = unsupported(plain)
    assert reason in found


@pytest.mark.parametrize("dtype", ["nvfp4", "fp8_ds_mla", "a later one"])
def test_scales_between_the_values_are_refused_for_lmcaches_own_copy_alone(
    plain: VllmConfig, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setitem(vars(plain.cache_config), "cache_dtype", dtype)
    assert not unsupported(plain)
    connector = SimpleNamespace(kv_connector_extra_config={COPY: "lmcache"})
    monkeypatch.setitem(vars(plain), "kv_transfer_config", connector)
    (found,) = unsupported(plain)
    assert f"--kv-cache-dtype={dtype} packs scales" in found


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: each.name)
def test_what_is_tested_is_not_refused(tmp_path: Path, architecture: Architecture) -> None:
    sizes = architecture.configuration
    found = reasons(tmp_path, architecture.model_type, architecture.name, sizes)
    assert found in ("", BY_VLLM)
