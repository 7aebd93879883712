"""The bytes that a model's weights take in memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kserve_lmcache.errors import IdentityError
from kserve_lmcache.identity.weights import weights_bytes
from tests.support.server import MODEL

SIZE = 1000


def model(directory: Path, *files: str, **config: object) -> Path:
    """Files of ``SIZE`` bytes each, and a configuration."""
    for name in files:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * SIZE)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_the_demo_model() -> None:
    assert weights_bytes(MODEL) == (MODEL / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("files", "count"),
    [
        (("a.safetensors", "b.safetensors"), 2),
        (("a.safetensors", "pytorch_model.bin", "consolidated.pth"), 1),
        (("a.bin", "b.bin", "c.pt"), 2),
        (("a.safetensors", "training_args.bin"), 1),
        (("a.gguf",), 1),
        (("transformer/a.safetensors", "transformer/b.safetensors"), 2),
    ],
)
def test_the_files_that_vllm_loads(tmp_path: Path, files: tuple[str, ...], count: int) -> None:
    assert weights_bytes(model(tmp_path, *files)) == count * SIZE


def test_a_copy_that_the_index_does_not_name_is_not_loaded(tmp_path: Path) -> None:
    model(tmp_path, "model-1.safetensors", "model-2.safetensors", "consolidated.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weights_bytes(tmp_path) == 2 * SIZE
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    assert weights_bytes(tmp_path) == 3 * SIZE


@pytest.mark.parametrize(
    ("config", "dtype", "factor"),
    [
        ({"torch_dtype": "bfloat16"}, "auto", 1),
        ({"torch_dtype": "bfloat16"}, "float32", 2),
        ({"dtype": "float16"}, "float", 2),
        ({"torch_dtype": "float32"}, "auto", 0.5),
        ({"torch_dtype": "float32"}, "half", 0.5),
        ({"torch_dtype": "float32"}, "float32", 1),
        ({"text_config": {"torch_dtype": "bfloat16"}}, "float32", 2),
        ({"torch_dtype": "bfloat16", "quantization_config": {"bits": 4}}, "float32", 1),
        ({}, "float32", 1),
    ],
)
def test_a_change_of_the_data_type(
    tmp_path: Path, config: dict[str, object], dtype: str, factor: float
) -> None:
    assert weights_bytes(model(tmp_path, "a.safetensors", **config), dtype) == factor * SIZE


def test_one_file_is_a_model_too(tmp_path: Path) -> None:
    model(tmp_path, "a.gguf", "b.gguf")
    assert weights_bytes(tmp_path / "a.gguf") == SIZE


def test_a_directory_without_weights_says_so(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="holds no weights"):
        weights_bytes(model(tmp_path))
