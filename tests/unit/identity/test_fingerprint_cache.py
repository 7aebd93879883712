"""The cache of fingerprints is used only for the same files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kserve_lmcache.identity.files import ModelFile
from kserve_lmcache.identity.fingerprint import fingerprint
from kserve_lmcache.identity.fingerprint_cache import entry_path
from tests.support.model_files import (
    digest,
    write,
)


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
