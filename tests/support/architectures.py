"""Tiny models of other architectures, randomly initialised from a fixed seed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 1024
_SPECIAL = 3  # tokens that begin, end or pad a text
_SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
    # Large enough that a token's logits depend on all before it.
    "initializer_range": 0.15,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_GPT_SIZES = {"n_embd": 128, "n_layer": 3, "n_head": 4, "n_positions": 1024}
_TWO = {"num_key_value_heads": 2}
_WINDOW = {
    **_TWO,
    "head_dim": 32,
    "sliding_window": 48,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}


def random_prompt(seed: str, length: int) -> list[int]:
    """Ordinary tokens of these models."""
    return random.Random(seed).choices(range(_SPECIAL, VOCABULARY), k=length)


@dataclass(frozen=True)
class Architecture:
    """One that is tested, as it stands in the documentation's table.

    Attributes:
        name: vLLM's class.
        model_type: transformers' name of its configuration.
        models: whose architecture it is.
        attention: what its KV is of.
        sizes: beside the common ones.
    """

    name: str
    model_type: str
    models: str
    attention: str
    sizes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def configuration(self) -> dict[str, Any]:
        """All of its values that are not transformers' defaults."""
        return {**_SIZES, **self.sizes}

    def build(self, directory: Path) -> Path:
        """Write a model; its weights take a few MB."""
        torch.manual_seed(0)
        config = AutoConfig.for_model(self.model_type, **self.configuration)
        model = AutoModelForCausalLM.from_config(config)
        model.to(torch.float32).save_pretrained(directory)
        return directory


_GROUPED = "grouped heads, RoPE"
_SLIDING = "grouped heads, RoPE, a sliding window in some layers"

ARCHITECTURES = (
    Architecture("LlamaForCausalLM", "llama", "Llama, SmolLM2, Yi", _GROUPED, _TWO),
    Architecture(
        "MistralForCausalLM",
        "mistral",
        "Mistral from 0.2 on",
        _GROUPED,
        {**_TWO, "sliding_window": None},
    ),
    Architecture(
        "Qwen2ForCausalLM", "qwen2", "Qwen2, Qwen2.5", "grouped heads with biases, RoPE", _TWO
    ),
    Architecture(
        "Qwen3ForCausalLM",
        "qwen3",
        "Qwen3",
        "grouped heads of a size of their own, normalised, RoPE",
        {**_TWO, "head_dim": 64},
    ),
    Architecture(
        "GemmaForCausalLM",
        "gemma",
        "Gemma",
        "one head of a size of its own, RoPE",
        {"num_key_value_heads": 1, "head_dim": 64},
    ),
    Architecture(
        "Phi3ForCausalLM", "phi3", "Phi-3, Phi-4", "grouped heads in one matrix, RoPE", _TWO
    ),
    Architecture(
        "PhiForCausalLM",
        "phi",
        "Phi-1, Phi-2",
        "all heads, RoPE on a part of each",
        {"intermediate_size": 512},
    ),
    Architecture("GraniteForCausalLM", "granite", "Granite", "grouped heads, scaled, RoPE", _TWO),
    Architecture("Olmo2ForCausalLM", "olmo2", "OLMo 2", "grouped heads, normalised, RoPE", _TWO),
    Architecture(
        "SmolLM3ForCausalLM", "smollm3", "SmolLM3", "grouped heads, RoPE in some layers only", _TWO
    ),
    Architecture(
        "CohereForCausalLM", "cohere", "Command R", "grouped heads, interleaved RoPE", _TWO
    ),
    Architecture(
        "StableLmForCausalLM",
        "stablelm",
        "StableLM 2",
        "grouped heads, RoPE on a part of each",
        _TWO,
    ),
    Architecture(
        "Starcoder2ForCausalLM",
        "starcoder2",
        "StarCoder2 without its window",
        "grouped heads with biases, RoPE",
        {**_TWO, "sliding_window": None},
    ),
    Architecture(
        "FalconForCausalLM",
        "falcon",
        "Falcon",
        "grouped heads in one matrix, RoPE",
        {"num_kv_heads": 2, "new_decoder_architecture": True},
    ),
    Architecture("GPTNeoXForCausalLM", "gpt_neox", "Pythia", "all heads in one matrix, RoPE"),
    Architecture(
        "GPTJForCausalLM", "gptj", "GPT-J", "all heads, RoPE", {**_GPT_SIZES, "rotary_dim": 32}
    ),
    Architecture("GPT2LMHeadModel", "gpt2", "GPT-2", "all heads, learned positions", _GPT_SIZES),
    Architecture(
        "OPTForCausalLM",
        "opt",
        "OPT",
        "all heads, learned positions",
        {"ffn_dim": 256, "word_embed_proj_dim": 128},
    ),
    Architecture(
        "BloomForCausalLM", "bloom", "BLOOM", "all heads, ALiBi", {"n_layer": 3, "n_head": 4}
    ),
    Architecture(
        "MixtralForCausalLM",
        "mixtral",
        "Mixtral",
        "grouped heads, RoPE, experts",
        {**_TWO, "num_local_experts": 4, "sliding_window": None},
    ),
    Architecture(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        "Qwen3-MoE",
        "grouped heads, normalised, RoPE, experts",
        {
            **_TWO,
            "head_dim": 64,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
        },
    ),
    Architecture("Gemma2ForCausalLM", "gemma2", "Gemma 2", _SLIDING, _WINDOW),
    Architecture("Gemma3ForCausalLM", "gemma3_text", "Gemma 3, text alone", _SLIDING, _WINDOW),
    Architecture(
        "Gemma4ForCausalLM",
        "gemma4_text",
        "Gemma 4, text alone",
        "heads of two sizes, RoPE, a sliding window in some layers",
        {
            **_WINDOW,
            # Refused with shared KV.
            "num_kv_shared_layers": 0,
            "global_head_dim": 64,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "hidden_size_per_layer_input": 0,
        },
    ),
    Architecture("Cohere2ForCausalLM", "cohere2", "Command R7B, Command A", _SLIDING, _WINDOW),
    Architecture("Olmo3ForCausalLM", "olmo3", "OLMo 3", _SLIDING, _WINDOW),
    Architecture("Exaone4ForCausalLM", "exaone4", "EXAONE 4", _SLIDING, _WINDOW),
)
