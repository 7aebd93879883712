"""Small models in safetensors files, for the fingerprint."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from kserve_lmcache.identity.fingerprint import fingerprint

Tensors = dict[str, np.ndarray[Any, Any]]

MIB = 2**20
CONFIG = {
    "_name_or_path": "org/model",
    "architectures": ["LlamaForCausalLM"],
    "rope_theta": 10000.0,
    "text_config": {"_name_or_path": "", "hidden_size": 64},
    "parts": [{"_name_or_path": "org/part", "depth": 2}],
    "transformers_version": "4.57.0",
}


def tensors(seed: int = 0) -> Tensors:
    """Two tensors that are sampled, and one that is read whole."""
    random = np.random.default_rng(seed)
    return {
        "embed": random.standard_normal((600, 64), np.float32),  # 150 KiB: sampled
        "layer.weight": random.standard_normal((256, 128), np.float32),  # 128 KiB: sampled
        "norm": random.standard_normal(64, np.float32),  # 256 bytes: whole
    }


def write(directory: Path, content: Tensors | None = None, **config: Any) -> Path:
    """Write a model with this content, and with changes of its configuration."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors() if content is None else content, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({**CONFIG, **config}))
    return directory


def digest(model: Path, **arguments: Any) -> str:
    """The digest of the model's fingerprint."""
    return fingerprint(model, **arguments).digest


def sparse(path: Path, size: int) -> None:
    """Make a file of zeros that takes no disk space."""
    with path.open("wb") as file:
        file.truncate(size)


def sparse_safetensors(path: Path, names: list[str], tensor_bytes: int) -> None:
    """Make a safetensors file whose tensors take no disk space."""
    header = {
        name: {
            "dtype": "BF16",
            "shape": [tensor_bytes // 2],
            "data_offsets": [number * tensor_bytes, (number + 1) * tensor_bytes],
        }
        for number, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + tensor_bytes * len(names))
