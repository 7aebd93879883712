"""Variants of the small model, and adapters for it, from fixed seeds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.support.server import MODEL


def copy(directory: Path, source: Path = MODEL) -> Path:
    """The same model at another path."""
    shutil.copytree(source, directory)
    return directory


def changed(directory: Path, parts: tuple[str, ...], seed: int, source: Path = MODEL) -> Path:
    """The model with noise on the tensors whose names hold one of ``parts``.

    All files keep their names and sizes.
    """
    copy(directory, source)
    generator = torch.Generator().manual_seed(seed)
    path = directory / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if any(part in name for part in parts):
            noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std() * 0.5
            tensors[name] = (tensor.float() + noise).to(tensor.dtype)
    save_file(tensors, path, metadata={"format": "pt"})
    return directory


def first_layers(directory: Path, layers: int) -> Path:
    """The model without its later layers: the same engine and cache, sooner done and smaller."""
    copy(directory)
    path = directory / "model.safetensors"
    kept = {
        name: tensor
        for name, tensor in load_file(path).items()
        if not name.startswith("model.layers.") or int(name.split(".")[2]) < layers
    }
    save_file(kept, path, metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
    return directory


def adapter(directory: Path, seed: int, rank: int = 8, source: Path = MODEL) -> Path:
    """A LoRA adapter of the K and V projections, in PEFT's layout."""
    directory.mkdir()
    config = json.loads((source / "config.json").read_text())
    hidden = config["hidden_size"]
    width = config["num_key_value_heads"] * (hidden // config["num_attention_heads"])
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for projection in ("k_proj", "v_proj"):
            name = f"base_model.model.model.layers.{layer}.self_attn.{projection}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(rank, hidden, generator=generator) * 0.05
            tensors[f"{name}.lora_B.weight"] = torch.randn(width, rank, generator=generator) * 0.05
    save_file(tensors, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "r": rank,
                "lora_alpha": 2 * rank,
                "target_modules": ["k_proj", "v_proj"],
                "bias": "none",
                "base_model_name_or_path": "the small model",
            }
        )
    )
    return directory


def altered(directory: Path, **changes: Any) -> Path:
    """The small model's files under the configuration of another kind of model."""
    directory.mkdir()
    for file in MODEL.iterdir():
        (directory / file.name).symlink_to(file)
    config = json.loads((MODEL / "config.json").read_text())
    (directory / "config.json").unlink()
    (directory / "config.json").write_text(json.dumps({**config, **changes}))
    return directory


MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
