from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from kserve_lmcache.errors import IdentityError, KServeLMCacheError
from kserve_lmcache.identity.files import ModelFile
from kserve_lmcache.identity.fingerprint import Fingerprint, fingerprint
from kserve_lmcache.identity.fingerprint_cache import entry_path

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
    random = np.random.default_rng(seed)
    return {
        "embed": random.standard_normal((600, 64), np.float32),  # 150 KiB: sampled
        "layer.weight": random.standard_normal((256, 128), np.float32),  # 128 KiB: sampled
        "norm": random.standard_normal(64, np.float32),  # 256 bytes: whole
    }


def write(directory: Path, content: Tensors | None = None, **config: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors() if content is None else content, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({**CONFIG, **config}))
    return directory


def digest(model: Path, **arguments: Any) -> str:
    return fingerprint(model, **arguments).digest


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def sparse_safetensors(path: Path, names: list[str], tensor_bytes: int) -> None:
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


# What is the same


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
def test_what_does_not_change_the_kv_is_left_out(tmp_path: Path, name: str) -> None:
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


# What is another


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
def test_other_files_that_change_the_kv_count(tmp_path: Path, name: str) -> None:
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


# The hub's cache

LARGE = "a" * 64
SMALL = "b" * 40


def snapshot(
    root: Path, commit: str = "c0ffee", large: str = LARGE, name: str = "models--org--name"
) -> Path:
    repository = root / name
    (repository / "blobs").mkdir(parents=True, exist_ok=True)
    directory = repository / "snapshots" / commit
    directory.mkdir(parents=True)
    for file, etag in (("model.safetensors", large), ("config.json", SMALL)):
        (repository / "blobs" / etag).touch()
        (directory / file).symlink_to(f"../../blobs/{etag}")
    return directory


def fill(directory: Path) -> None:
    """Give the blobs a content that can be read; the links stay."""
    save_file(tensors(), directory.parent.parent / "blobs" / LARGE)
    (directory / "config.json").write_text("{}")
    assert all(path.is_symlink() for path in directory.iterdir())


def test_a_hub_snapshot_is_known_by_its_etags(tmp_path: Path) -> None:
    result = fingerprint(snapshot(tmp_path / "one"))
    other_path = fingerprint(
        snapshot(tmp_path / "two", commit="decade", name="models--mirror--copy")
    )
    other_weights = fingerprint(snapshot(tmp_path / "three", large="d" * 64))
    assert result.method == other_path.method == other_weights.method == "hub"
    assert result.digest == other_path.digest != other_weights.digest


def test_a_snapshot_that_a_mount_point_links_to_is_still_one(tmp_path: Path) -> None:
    directory = snapshot(tmp_path)
    (tmp_path / "mnt").symlink_to(directory)
    assert fingerprint(tmp_path / "mnt").digest == digest(directory)
    assert fingerprint(tmp_path / "mnt").method == "hub"


def test_no_blob_of_a_snapshot_is_read(tmp_path: Path) -> None:
    """These are neither safetensors nor JSON: reading either would raise."""
    directory = snapshot(tmp_path)
    sparse(directory / "model.safetensors", 140 * 2**30)
    assert "none read" in fingerprint(directory).summary
    with pytest.raises(IdentityError, match="is not JSON"):
        fingerprint(directory, full=True)


def copy_one_file(directory: Path) -> None:
    (directory / "config.json").unlink()
    (directory / "config.json").write_text("{}")


def link_elsewhere(directory: Path) -> None:
    path = directory / "config.json"
    path.unlink()
    (directory.parent / SMALL).write_text("{}")
    path.symlink_to(f"../{SMALL}")


def name_a_blob_otherwise(directory: Path) -> None:
    path = directory / "config.json"
    path.unlink()
    (directory.parent.parent / "blobs/main-etag").write_text("{}")
    path.symlink_to("../../blobs/main-etag")


@pytest.mark.parametrize("change", [copy_one_file, link_elsewhere, name_a_blob_otherwise])
def test_a_snapshot_with_anything_else_in_it_is_read(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    directory = snapshot(tmp_path)
    fill(directory)
    change(directory)
    assert fingerprint(directory).method == "sampled"


def test_links_to_blobs_outside_a_hub_cache_are_read(tmp_path: Path) -> None:
    directory = snapshot(tmp_path, name="somewhere")
    fill(directory)
    assert fingerprint(directory).method == "sampled"


# What is wrong


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: Any, end: Any) -> dict[str, Any]:
    return {"a": {"dtype": "U8", "shape": [4], "data_offsets": [begin, end]}}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "has 0 bytes, too few for a safetensors file"),
        (b"\1\0\0", "has 3 bytes, too few"),
        (safetensors({}, length=500), "has 10 bytes, but a header of 500 bytes after the first 8"),
        (safetensors({}, length=2**63), "more than the format's 100000000"),
        (safetensors(b"nonsense"), "has a header that is not JSON"),
        (safetensors(b"\xff\xff\xff"), "has a header that is not JSON"),
        (safetensors(b"[" * 100_000), "has a header that is not JSON"),
        (safetensors([]), "has a header that is not a JSON object"),
        (safetensors({"a": 1}), "does not say where tensor 'a' is"),
        (safetensors(entry(0, True)), "does not say where tensor 'a' is"),
        (safetensors(entry(4, 0), bytes(4)), r"has data_offsets \[4, 0\] for tensor 'a'"),
        (safetensors(entry(-4, 0), bytes(4)), r"has data_offsets \[-4, 0\] for tensor 'a'"),
        (safetensors(entry(0, 4), bytes(3)), "tensor 'a' ends at byte 72 .data_offsets."),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("full", [False, True])
def test_a_damaged_safetensors_file_is_named(
    tmp_path: Path, content: bytes, what: str, full: bool
) -> None:
    path = write(tmp_path) / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(IdentityError, match=what) as raised:
        fingerprint(tmp_path, full=full)
    assert str(raised.value).startswith(f"{path}: ")
    assert isinstance(raised.value, KServeLMCacheError)


def test_a_truncated_download_is_named(tmp_path: Path) -> None:
    path = write(tmp_path) / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(IdentityError, match=r"ends at byte \d+ .*download it again"):
        fingerprint(tmp_path)


def test_a_model_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "training_args.bin").write_bytes(b"x")
    with pytest.raises(IdentityError, match=r"holds no weights \(\*\.safetensors, "):
        fingerprint(tmp_path)
    with pytest.raises(IdentityError, match="holds no weights"):
        fingerprint(tmp_path / "config.json")
    with pytest.raises(IdentityError, match="does not exist"):
        fingerprint(tmp_path / "absent")


@pytest.mark.parametrize("target", ["gone", "more.safetensors"])
def test_a_link_that_leads_nowhere_is_named(tmp_path: Path, target: str) -> None:
    write(tmp_path)
    (tmp_path / "more.safetensors").symlink_to(target)
    with pytest.raises(IdentityError, match=r"more\.safetensors: cannot be read"):
        fingerprint(tmp_path)


def test_a_configuration_that_is_not_json_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(IdentityError, match=r"config\.json: is not JSON"):
        fingerprint(tmp_path)


@pytest.fixture
def without_rights() -> Iterator[Path]:
    """A directory that anyone may enter, and a process that is nobody in particular."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    user = os.geteuid()
    try:
        write(directory)
        save_file(tensors(1), directory / "more.safetensors")
        for path in directory.iterdir():
            path.chmod(0o644)
        yield directory
    finally:
        os.seteuid(user)
        shutil.rmtree(directory)


@pytest.mark.parametrize("name", ["more.safetensors", "config.json", "."])
@pytest.mark.parametrize("full", [False, True])
def test_a_file_that_may_not_be_read_is_named(without_rights: Path, name: str, full: bool) -> None:
    path = without_rights / name
    path.chmod(0o600 if os.geteuid() == 0 else 0)
    if os.geteuid() == 0:  # whom no permission holds back
        os.seteuid(65534)
    with pytest.raises(IdentityError, match=r"cannot be read \(Permission denied\)") as raised:
        fingerprint(without_rights, full=full)
    assert raised.value.path == path


# The cache


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "model")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache/of/fingerprints"


def bytes_read_by_this_process() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def test_the_second_call_reads_no_file(model: Path, cache: Path) -> None:
    first = fingerprint(model, cache_directory=cache)
    before = bytes_read_by_this_process()
    second = fingerprint(model, cache_directory=cache)
    # The cache's entry and /proc/self/io itself; the weights are 278 KiB.
    assert bytes_read_by_this_process() - before < 4096
    assert second.digest == first.digest
    assert second.method == first.method == "sampled"
    assert "none read" in second.summary
    assert "none read" not in first.summary


def test_the_cache_is_one_private_file_and_the_model_stays_as_it_was(
    model: Path, cache: Path
) -> None:
    before = sorted(model.iterdir())
    digest(model, cache_directory=cache)
    (entry_file,) = cache.iterdir()
    assert entry_file.stat().st_mode & 0o777 == 0o600
    assert sorted(model.iterdir()) == before


def remember_something_else(cache: Path) -> str:
    (entry_file,) = cache.iterdir()
    entry_file.write_text(json.dumps({"digest": "f" * 64}))
    return "f" * 64


def test_full_does_not_use_the_cache(model: Path, cache: Path) -> None:
    digest(model, full=True, cache_directory=cache)
    assert not cache.exists()
    digest(model, cache_directory=cache)
    false = remember_something_else(cache)
    assert digest(model, cache_directory=cache) == false
    assert digest(model, full=True, cache_directory=cache) == digest(model, full=True) != false


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_another_mtime_is_not_remembered(model: Path, cache: Path, file: str) -> None:
    digest(model, cache_directory=cache)
    false = remember_something_else(cache)
    os.utime(model / file, (1, 1))
    assert digest(model, cache_directory=cache) == digest(model) != false


def test_content_replaced_under_the_same_size_mtime_and_inode_is_seen(
    model: Path, cache: Path
) -> None:
    path = model / "model.safetensors"
    before, status = digest(model, cache_directory=cache), path.stat()
    tick = model.parent / "tick"
    while not tick.exists() or tick.stat().st_ctime_ns <= status.st_ctime_ns:
        tick.touch()  # until the file system's clock has moved on
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\7")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    now = path.stat()
    assert (now.st_size, now.st_mtime_ns, now.st_ino) == (
        status.st_size,
        status.st_mtime_ns,
        status.st_ino,
    )
    assert digest(model, cache_directory=cache) != before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"digest": "short"}', b"\xff"])
def test_a_damaged_cache_is_ignored_and_fixed(model: Path, cache: Path, content: bytes) -> None:
    first = digest(model, cache_directory=cache)
    (entry_file,) = cache.iterdir()
    entry_file.write_bytes(content)
    assert digest(model, cache_directory=cache) == first
    assert json.loads(entry_file.read_bytes())["digest"] == first


def test_files_whose_times_are_whole_seconds_are_not_remembered(cache: Path) -> None:
    """As on images that are mounted as they were built, where all of them may be alike."""

    def path(ctime: int, scheme: str = "scheme") -> Path | None:
        file = ModelFile("a.bin", Path("a.bin"), (1, 5, ctime, 7, 8), is_weights=True)
        return entry_path(cache, scheme, [file])

    assert path(0) is None
    assert path(1_700_000_000_000_000_000) is None
    kept = path(1_700_000_000_000_000_001)
    assert kept not in (None, path(1_700_000_000_000_000_002))
    assert kept != path(1_700_000_000_000_000_001, "another scheme")


def test_what_another_user_wrote_into_the_cache_is_ignored(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = digest(model, cache_directory=cache)
    false = remember_something_else(cache)
    assert digest(model, cache_directory=cache) == false
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    assert digest(model, cache_directory=cache) == first


def test_a_cache_that_cannot_be_written_is_ignored(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    expected = digest(model)
    # Not even root may write into /proc.
    for directory in (tmp_path / "file/cache", Path("/proc/kserve-lmcache")):
        assert digest(model, cache_directory=directory) == expected
    assert digest(model, cache_directory=Path("/proc")) == expected


# The result


def test_of_a_140_gb_model_a_thousandth_is_read(tmp_path: Path) -> None:
    size = 140_000_000_000 // 720
    for shard in range(30):
        names = [f"layer.{shard}.{number}" for number in range(24)]
        sparse_safetensors(tmp_path / f"model-{shard:05}-of-00030.safetensors", names, size)
    result = fingerprint(tmp_path)
    read, _, total = result.summary.split(", ", 1)[1].split(" ")[:3]
    assert int(total.replace(",", "")) > 139_000_000_000
    assert int(read.replace(",", "")) < 140_000_000


def test_a_fingerprint_is_plain_and_says_what_was_done(model: Path) -> None:
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
