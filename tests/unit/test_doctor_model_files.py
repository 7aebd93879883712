from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from kserve_lmcache.doctor import model_files
from kserve_lmcache.doctor.check import Finding, Status, Subject

HUB_ID = "Qwen/Qwen3-0.6B"


def look_at(model: str | Path | None, revision: str | None = None, **environ: str) -> Finding:
    subject = Subject(environ, model=str(model) if model else None, revision=revision)
    (finding,) = model_files.model(subject)
    return finding


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
    assert look_at(model).evidence == f"{index} cannot be read"


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    assert look_at(file).evidence == f"{file}, 4 B"
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
    assert "has no weights (*.safetensors, " in finding.evidence


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
def test_what_is_no_hub_id(name: str) -> None:
    finding = look_at(name, HF_HOME="/nowhere")
    assert finding.status is Status.FAILURE
    assert finding.evidence == f"{name!r} is neither a directory here nor a hub id"


@pytest.mark.parametrize("name", ["gpt2", HUB_ID, "a_b/c.d-e", "a/" + "b" * 96])
def test_a_hub_id_that_will_be_fetched(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=20 * 2**30))
    finding = look_at(name, HF_HOME=str(tmp_path))
    assert finding.status is Status.OK
    assert finding.evidence == (
        f"{name} will be fetched into {tmp_path / 'hub'} (20.0 GiB free); the hub was not asked"
    )
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**29))
    finding = look_at(HUB_ID, HF_HOME=str(tmp_path))
    assert finding.status is Status.WARNING
    assert "512.0 MiB free" in finding.evidence


def test_a_cached_hub_id(tmp_path: Path) -> None:
    repository = tmp_path / "models--Qwen--Qwen3-0.6B"
    (repository / "snapshots/c0ffee").mkdir(parents=True)
    (repository / "snapshots/c0ffee/config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("c0ffee")
    for revision in (None, "main", "c0ffee"):
        finding = look_at(HUB_ID, revision, HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE="1")
        assert finding.status is Status.OK
        assert finding.evidence == (
            f"{HUB_ID} ({revision or 'main'}) is in {tmp_path}; its weights were not looked at"
        )
    finding = look_at(HUB_ID, "v2", HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE="1")
    assert finding.status is Status.FAILURE
    assert finding.evidence == f"{HUB_ID} (v2) is not in {tmp_path}, and HF_HUB_OFFLINE is set"


def test_a_cache_that_cannot_be_written() -> None:
    # Not even root can make files there.
    finding = look_at(HUB_ID, HF_HOME="/proc/self/cache")
    assert finding.status is Status.FAILURE
    assert "is not cached, and /proc/self/cache/hub cannot be written" in finding.evidence
    assert "Set HF_HOME" in finding.fix


@pytest.mark.parametrize(
    ("environ", "cache"),
    [
        ({"HOME": "/home/u"}, "/home/u/.cache/huggingface/hub"),
        ({"HOME": "/home/u", "XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ({"HF_HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/h/hub"),
        ({"HF_HUB_CACHE": "/c", "HF_HOME": "/h"}, "/c"),
    ],
)
def test_where_the_cache_is(environ: dict[str, str], cache: str) -> None:
    assert model_files._cache(environ) == Path(cache)


def test_where_the_files_are(model: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub/models--Qwen--Qwen3-0.6B/snapshots/c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    for name, files in ((str(model), model), (HUB_ID, snapshot), ("Qwen/other", None)):
        subject = Subject({"HF_HOME": str(tmp_path)}, model=name, revision="c0ffee")
        assert model_files.files_of(subject) == files
    for name in (None, "s3://bucket/model", "/nowhere"):
        assert model_files.files_of(Subject(model=name)) is None


def test_what_is_not_looked_at() -> None:
    assert look_at(None).evidence == "none is given"
    finding = look_at("s3://bucket/model")
    assert finding.status is Status.SKIPPED
    assert finding.evidence == "s3://bucket/model is fetched by vLLM; not looked at"
