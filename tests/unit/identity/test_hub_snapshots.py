"""A snapshot in the hub's cache is identified by its links, without reading a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from kserve_lmcache.errors import IdentityError
from kserve_lmcache.identity.fingerprint import fingerprint
from tests.support.model_files import (
    digest,
    sparse,
    tensors,
)

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
