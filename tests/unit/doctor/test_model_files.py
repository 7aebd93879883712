from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants, try_to_load_from_cache

from kserve_lmcache.doctor import model_files
from kserve_lmcache.doctor.check import Finding, Status
from kserve_lmcache.doctor.context import Context

HUB_ID = "Qwen/Qwen3-0.6B"


def look_at(model: str | Path | None, revision: str | None = None) -> Finding:
    return model_files.model(Context(model=str(model) if model else None, revision=revision))


Hub = Callable[..., Path]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Sets the hub's cache, as its variables do before its library is imported."""

    def use(cache: Path | str, offline: bool = False) -> Path:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        return Path(cache)

    return use


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory as a model has it."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(2048))
    return tmp_path


def test_a_directory(model: Path) -> None:
    finding = look_at(model)
    assert finding.status is Status.OK
    assert finding.evidence == f"{model}: config.json, weights 2.0 KiB in 1 file"


def test_a_directory_of_several_files(model: Path) -> None:
    (model / "second.safetensors").write_bytes(bytes(2048))
    names = {"a": "model.safetensors", "b": "second.safetensors"}
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    assert look_at(model).evidence.endswith("weights 4.0 KiB in 2 files")
    (model / "second.safetensors").unlink()
    finding = look_at(model)
    assert finding.status is Status.FAILURE
    assert finding.evidence == f"{index.name} names 1 missing file(s): second.safetensors"
    index.write_text("[]")
    assert look_at(model).evidence == f"{index} is no index of weights"
    index.write_text("{")
    assert look_at(model).evidence.startswith(f"{index}: Expecting property name")


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    assert look_at(file).evidence == f"{file}, weights 4 B in 1 file"
    file.write_bytes(b"")
    assert look_at(file).status is Status.FAILURE


@pytest.mark.parametrize("name", ["/nowhere", "./nowhere", "../nowhere"])
def test_a_directory_that_is_missing(name: str) -> None:
    finding = look_at(name)
    assert finding.status is Status.FAILURE
    assert finding.evidence.endswith("nowhere: No such file or directory")
    assert "/mnt/models" in finding.fix


def test_a_directory_without_a_configuration(model: Path) -> None:
    (model / "config.json").rename(model / "other.json")
    finding = look_at(model)
    assert finding.status is Status.FAILURE
    assert finding.evidence == (
        f"{model} has no config.json; it holds model.safetensors, other.json"
    )
    assert finding.fix == "Name the directory that holds config.json itself."


def test_a_configuration_that_is_cut_off(model: Path) -> None:
    (model / "config.json").write_text('{"architectures": [')
    finding = look_at(model)
    assert finding.status is Status.FAILURE
    assert finding.evidence.startswith(f"{model / 'config.json'}: Expecting value")
    assert finding.fix == "Fetch the model once more, all of it."


def test_a_directory_without_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    finding = look_at(model)
    assert finding.status is Status.FAILURE
    assert "holds no weights (*.safetensors, " in finding.evidence


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "is a pointer of Git LFS, not the file itself",
        ),
    ],
)
def test_weights_that_are_none(model: Path, content: bytes, reason: str) -> None:
    (model / "model.safetensors").write_bytes(content)
    finding = look_at(model)
    assert finding.status is Status.FAILURE
    assert finding.evidence == f"{model / 'model.safetensors'}: {reason}"


@pytest.mark.parametrize(
    "name", ["a b", "a/b/c", "-a/b", "a/b-", "a--b", "a/b..c", "a/" + "b" * 97]
)
def test_a_name_that_is_no_hub_id(name: str, hub: Hub) -> None:
    hub("/nowhere")
    finding = look_at(name)
    assert model_files.files_of(Context(model=name)) is None
    assert finding.status is Status.FAILURE
    assert finding.evidence == f"{name!r} is neither a directory here nor a hub id"


@pytest.mark.parametrize("name", ["gpt2", HUB_ID, "a_b/c.d-e", "a/" + "b" * 96])
def test_a_hub_id_that_will_be_fetched(
    name: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub(tmp_path / "hub")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=20 * 2**30))
    finding = look_at(name)
    assert finding.status is Status.OK
    assert finding.evidence == (
        f"{name} will be fetched into {tmp_path / 'hub'} (20.0 GiB free); the hub was not asked"
    )
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**29))
    finding = look_at(HUB_ID)
    assert finding.status is Status.WARNING
    assert "512.0 MiB free" in finding.evidence


def test_a_cached_hub_id(hub: Hub, tmp_path: Path) -> None:
    hub(tmp_path, offline=True)
    repository = tmp_path / "models--Qwen--Qwen3-0.6B"
    (repository / "snapshots/c0ffee").mkdir(parents=True)
    (repository / "snapshots/c0ffee/config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("c0ffee")
    for revision in (None, "main", "c0ffee"):
        finding = look_at(HUB_ID, revision)
        assert finding.status is Status.OK
        assert finding.evidence == (
            f"{HUB_ID} ({revision or 'main'}) is in {tmp_path}; its weights were not looked at"
        )
    finding = look_at(HUB_ID, "v2")
    assert finding.status is Status.FAILURE
    assert finding.evidence == f"{HUB_ID} (v2) is not in {tmp_path}, and HF_HUB_OFFLINE is set"


def test_a_cache_that_cannot_be_written(hub: Hub) -> None:
    hub("/proc/self/cache/hub")  # not even root can make files there
    finding = look_at(HUB_ID)
    assert finding.status is Status.FAILURE
    assert "is not cached, and /proc/self/cache/hub cannot be written" in finding.evidence
    assert "Set HF_HOME" in finding.fix


def test_where_the_files_are(model: Path, hub: Hub, tmp_path: Path) -> None:
    snapshot = hub(tmp_path / "hub") / "models--Qwen--Qwen3-0.6B/snapshots/c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    for name, files in ((str(model), model), (HUB_ID, snapshot), ("Qwen/other", None)):
        context = Context(model=name, revision="c0ffee")
        assert model_files.files_of(context) == files
    for name in (None, "s3://bucket/model", "/nowhere"):
        assert model_files.files_of(Context(model=name)) is None


def test_a_model_that_is_not_looked_at() -> None:
    assert look_at(None).evidence == "no model is given"
    finding = look_at("s3://bucket/model")
    assert finding.status is Status.SKIPPED
    assert finding.evidence == "s3://bucket/model is fetched by vLLM; not looked at"


@pytest.mark.parametrize("revision", ["main", "abc123", "other"])
@pytest.mark.parametrize(
    "name",
    [
        "Qwen/Qwen3-0.6B",
        "gpt2",
        "a--b",
        "a/b/c",
        "-a",
        "a.git",
        "a..b",
        "caf\u00e9",
        "a b",
        "x" * 97,
    ],
)
def test_the_hubs_cache_is_read_as_its_library_reads_it(
    name: str, revision: str, hub: Hub, tmp_path: Path
) -> None:
    cache = hub(tmp_path)
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc123")
    (folder / "snapshots" / "abc123").mkdir(parents=True)
    (folder / "snapshots" / "abc123" / "config.json").write_text("{}")

    def by_library() -> str | None:
        try:
            found = try_to_load_from_cache(name, "config.json", tmp_path, revision)
        except ValueError:
            return "refused"
        return str(Path(found).parent) if isinstance(found, str) else None

    def by_us() -> str | None:
        try:
            found = model_files._snapshot(name, revision)
        except ValueError:
            return "refused"
        return str(found) if found else None

    assert by_us() == by_library()
