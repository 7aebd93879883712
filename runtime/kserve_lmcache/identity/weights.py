"""How many bytes the weights of a model take when they are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kserve_lmcache.identity.files import ModelFile, model_directory, model_files

# vLLM loads the first kind that a model has.
_KINDS = (".safetensors", ".bin", ".pt", ".pth")
_INDEX = "model.safetensors.index.json"
# The bytes of an element, by the names of PyTorch in config.json and of the flag --dtype.
ELEMENT_BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}


def weights_bytes(model: Path, dtype: str = "auto") -> int:
    """The bytes of the weights in memory, all workers together.

    Args:
        model: the directory of the model, or its single file.
        dtype: the value of vLLM's flag ``--dtype``. Quantized weights stay as they are stored.

    Raises:
        IdentityError: the model has no weights, or a file cannot be read.
    """
    files = [file for file in model_files(model) if file.is_weights]
    first = next((kind for kind in _KINDS if any(file.path.suffix == kind for file in files)), None)
    if first is not None:
        files = [file for file in files if file.path.suffix == first]
    stored = sum(file.size for file in _indexed(files, model_directory(model)))
    return int(stored * _growth(_settings(model_directory(model) / "config.json"), dtype))


def _indexed(files: list[ModelFile], directory: Path) -> list[ModelFile]:
    """The files that the index names: the others hold the same weights in another layout."""
    named = _settings(directory / _INDEX).get("weight_map")
    if not isinstance(named, dict):
        return files
    names = set(map(str, named.values()))
    return [file for file in files if file.name in names] or files


def _growth(config: dict[str, Any], dtype: str) -> float:
    """The size of an element in memory, divided by its size in the files."""
    inner = config.get("text_config")
    nested = inner if isinstance(inner, dict) else {}
    found = (each.get(key) for each in (config, nested) for key in ("dtype", "torch_dtype"))
    stored = next((str(each) for each in found if each), "")
    if config.get("quantization_config") or stored not in ELEMENT_BYTES:
        return 1.0
    # vLLM's auto loads float32 in half of it.
    loaded = ELEMENT_BYTES.get(dtype, min(2, ELEMENT_BYTES[stored]))
    return loaded / ELEMENT_BYTES[stored]


def _settings(path: Path) -> dict[str, Any]:
    """The JSON object of a file; empty where there is none. vLLM says what is wrong with it."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
