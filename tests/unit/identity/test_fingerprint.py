"""The same content has one digest, and other content has another."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from kserve_lmcache.identity.fingerprint import Fingerprint, fingerprint
from tests.support.model_files import (
    CONFIG,
    MIB,
    Tensors,
    digest,
    sparse,
    sparse_safetensors,
    tensors,
    write,
)


@pytest.mark.parametrize("full", [False, True])
def test_the_same_content_at_two_paths_is_the_same(tmp_path: Path, full: bool) -> None:
    one = write(tmp_path / "one")
    other = write(tmp_path / "far/away/other")
    for path in other.iterdir():
        os.utime(path, (1, 1))
        path.chmod(0o400)
    assert digest(one, full=full) == digest(other, full=full)


def test_a_link_to_the_model_and_links_to_its_files_are_followed(tmp_path: Path) -> None:
    model = write(tmp_path / "model")
    (tmp_path / "link").symlink_to(model)
    links = tmp_path / "links"
    links.mkdir()
    for path in model.iterdir():
        (links / path.name).symlink_to(path)
    assert digest(tmp_path / "link") == digest(links) == digest(model)


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json",
        "generation_config.json",
        "README.md",
        "training_args.bin",
        "optimizer.pt",
        "._model.safetensors",
        "original/consolidated.00.pth",
    ],
)
def test_files_that_do_not_change_the_kv_are_not_hashed(tmp_path: Path, name: str) -> None:
    model = write(tmp_path)
    before = digest(model)
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(b"something")
    assert digest(model) == before


def test_names_in_the_configuration_do_not_count_but_its_numbers_do(tmp_path: Path) -> None:
    first = digest(write(tmp_path / "first"))
    nested = {"_name_or_path": "/mnt/models", "hidden_size": 64}
    renamed = write(
        tmp_path / "renamed",
        _name_or_path="elsewhere",
        transformers_version="5.0.0",
        text_config=nested,
        parts=[{"depth": 2}],
    )
    reordered = write(tmp_path / "reordered")
    config = dict(reversed(CONFIG.items()))
    (reordered / "config.json").write_text(json.dumps(config, indent=2))
    assert digest(renamed) == digest(reordered) == first
    assert digest(write(tmp_path / "scaled", rope_theta=500000.0)) != first
    assert digest(write(tmp_path / "wider", text_config={"hidden_size": 128})) != first


def test_an_adapter_does_not_depend_on_where_its_base_model_lies(tmp_path: Path) -> None:
    def adapter(name: str, **config: Any) -> Path:
        directory = tmp_path / name
        directory.mkdir()
        save_file({"lora_A": np.ones((8, 64), np.float32)}, directory / "adapter_model.safetensors")
        (directory / "adapter_config.json").write_text(json.dumps(config))
        return directory

    here = adapter("here", r=8, lora_alpha=16, base_model_name_or_path="/mnt/models")
    there = adapter("there", r=8, lora_alpha=16, base_model_name_or_path="org/model")
    scaled = adapter("scaled", r=8, lora_alpha=32, base_model_name_or_path="/mnt/models")
    assert digest(here) == digest(there) != digest(scaled)


@st.composite
def tensor_sets(draw: st.DrawFn) -> Tensors:
    """Tensors around the sizes at which whole reading turns into sampling."""
    names = draw(st.lists(st.text("abc.", min_size=1, max_size=6), min_size=1, unique=True))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = st.sampled_from([1, 3, 1023, 3071, 3072, 3073, 20_000, 100_000])
    dtypes = st.sampled_from([np.float16, np.float32])
    return {name: random.standard_normal(draw(sizes)).astype(draw(dtypes)) for name in names}


@settings(max_examples=60, deadline=None)
@given(tensor_sets(), st.data())
def test_noise_on_any_one_tensor_is_seen(content: Tensors, data: st.DataObject) -> None:
    changed = data.draw(st.sampled_from(sorted(content)))
    noisy = content[changed] + np.array(0.5, content[changed].dtype)
    with tempfile.TemporaryDirectory() as directory:
        model = write(Path(directory), content)
        before = digest(model), digest(model, full=True)
        size = (model / "model.safetensors").stat().st_size
        write(model, {**content, changed: noisy})
        assert (model / "model.safetensors").stat().st_size == size
        assert digest(model) != before[0]
        assert digest(model, full=True) != before[1]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 3071), st.sampled_from(["first", "norm"]))
def test_one_element_of_a_small_tensor_is_seen(index: int, name: str) -> None:
    content: Tensors = {
        "first": np.zeros(3072, np.float32),
        "large": np.zeros(200_000, np.float32),
        "norm": np.zeros(3072, np.float32),
    }
    with tempfile.TemporaryDirectory() as directory:
        model = write(Path(directory), content)
        before = digest(model)
        content[name][index] = 1
        assert digest(write(model, content)) != before


@pytest.mark.parametrize("place", [0, 4095, MIB // 2, MIB - 4096, MIB - 1])
def test_the_first_middle_and_last_piece_of_a_tensor_are_sampled(
    tmp_path: Path, place: int
) -> None:
    content: Tensors = {name: np.zeros(MIB, np.uint8) for name in ("a", "b", "c")}
    before = digest(write(tmp_path, content))
    content["b"][place] = 1
    assert digest(write(tmp_path, content)) != before


def test_every_part_of_a_large_tensor_is_sampled_and_full_sees_single_bytes(tmp_path: Path) -> None:
    content: Tensors = {"stacked": np.zeros((64, MIB), np.uint8)}
    model = write(tmp_path, content)
    before, before_full = digest(model), digest(model, full=True)
    # Rows of a MiB; the pieces begin at a fifth of the tensor, two fifths, and so on.
    for row in (12, 25, 38, 51):
        content["stacked"][row] = 1
        assert digest(write(model, content)) != before
        content["stacked"][row] = 0
    # What the docstring says would go unseen.
    content["stacked"][20, 12345] = 1
    write(model, content)
    assert digest(model) == before
    assert digest(model, full=True) != before_full


def rename_tensor(model: Path) -> None:
    content = tensors()
    content["morn"] = content.pop("norm")
    save_file(content, model / "model.safetensors")


def rename_one_of_many(model: Path) -> None:
    content = {f"layer.{number:04}": np.zeros(1, np.uint8) for number in range(2000)}
    save_file(content, model / "many.safetensors")
    path = model / "many.safetensors"
    before = digest(model)
    path.write_bytes(path.read_bytes().replace(b'"layer.1000"', b'"renamed.10"'))
    assert digest(model) != before


def change_dtype(model: Path) -> None:
    content = tensors()
    content["norm"] = content["norm"].view(np.int32)
    save_file(content, model / "model.safetensors")


def rename_settings(model: Path) -> None:
    (model / "config.json").rename(model / "params.json")
    before = digest(model)
    (model / "params.json").rename(model / "quant_config.json")
    assert digest(model) != before


def add_shard(model: Path) -> None:
    save_file({"more": np.ones(4, np.float32)}, model / "more.safetensors")


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    "change", [rename_tensor, rename_one_of_many, change_dtype, rename_settings, add_shard]
)
def test_another_structure_is_another_model(
    tmp_path: Path, change: Callable[[Path], None], full: bool
) -> None:
    model = write(tmp_path)
    before = digest(model, full=full)
    change(model)
    assert digest(model, full=full) != before


@pytest.mark.parametrize(
    "name",
    [
        "adapter_config.json",
        "hf_quant_config.json",
        "model.safetensors.index.json",
        "modeling_custom.py",
        "params.json",
        "preprocessor_config.json",
        "pytorch_model.bin",
        "quant_config.json",
        "quantization_config.json",
        "quantize_config.json",
    ],
)
def test_files_that_change_the_kv_are_hashed(tmp_path: Path, name: str) -> None:
    model = write(tmp_path)
    seen = {digest(model)}
    for content in ('{"a": 1}', '{"a": 2}'):
        (model / name).write_text(content)
        seen.add(digest(model))
    assert len(seen) == 3


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth", "gguf", "npz", "tensors"])
@pytest.mark.parametrize("place", [0, 5 * MIB, 9 * MIB, 10 * MIB - 1])
def test_formats_without_a_readable_header_are_sampled(
    tmp_path: Path, suffix: str, place: int
) -> None:
    path = tmp_path / f"weights.{suffix}"
    sparse(path, 10 * MIB)
    before = fingerprint(tmp_path)
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"\1" * 4)
    assert digest(tmp_path) != before.digest
    assert "2,129,920 of 10,485,760 bytes" in before.summary


@pytest.mark.parametrize("full", [False, True])
def test_the_size_counts_where_the_sampled_bytes_are_the_same(tmp_path: Path, full: bool) -> None:
    seen = set()
    for size in (10 * MIB, 10 * MIB - 100, 10 * MIB - 200):
        sparse(tmp_path / "weights.bin", size)
        seen.add(digest(tmp_path, full=full))
    assert len(seen) == 3


def test_a_model_that_is_one_file_counts_without_its_siblings(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF a")
    (tmp_path / "b.gguf").write_bytes(b"GGUF b")
    first = digest(tmp_path / "a.gguf")
    assert digest(tmp_path / "b.gguf") != first
    (tmp_path / "b.gguf").unlink()
    assert digest(tmp_path / "a.gguf") == first


def test_weights_one_level_down_are_found_only_when_there_are_none_above(tmp_path: Path) -> None:
    write(tmp_path / "transformer")
    before = digest(tmp_path)
    write(tmp_path / "transformer", tensors(1))
    after = digest(tmp_path)
    assert before != after
    write(tmp_path)
    top = digest(tmp_path)
    shutil.rmtree(tmp_path / "transformer")
    assert digest(tmp_path) == top


def test_of_a_140_gb_model_a_thousandth_is_read(tmp_path: Path) -> None:
    size = 140_000_000_000 // 720
    for shard in range(30):
        names = [f"layer.{shard}.{number}" for number in range(24)]
        sparse_safetensors(tmp_path / f"model-{shard:05}-of-00030.safetensors", names, size)
    result = fingerprint(tmp_path)
    read, _, total = result.summary.split(", ", 1)[1].split(" ")[:3]
    assert int(total.replace(",", "")) > 139_000_000_000
    assert int(read.replace(",", "")) < 140_000_000


def test_the_fields_of_a_fingerprint(tmp_path: Path) -> None:
    model = write(tmp_path)
    result = fingerprint(model)
    assert isinstance(result, Fingerprint)
    assert len(result.digest) == 64
    int(result.digest, 16)
    assert result.method == "sampled"
    assert result.summary.startswith("2 files, ")
    assert result.seconds > 0
    json.dumps(asdict(result))
    one = fingerprint(model / "model.safetensors", full=True)
    assert one.method == "full"
