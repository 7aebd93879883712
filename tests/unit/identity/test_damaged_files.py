"""An error names the file that is missing, damaged or unreadable."""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from kserve_lmcache.errors import IdentityError, KServeLMCacheError
from kserve_lmcache.identity.fingerprint import fingerprint
from tests.support.model_files import (
    tensors,
    write,
)


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: Any, end: Any) -> dict[str, Any]:
    return {"a": {"dtype": "U8", "shape": [4], "data_offsets": [begin, end]}}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "has 0 bytes and a header of 0 bytes"),
        (b"\1\0\0", "has 3 bytes and a header of 1 bytes"),
        (safetensors({}, length=500), "has 10 bytes and a header of 500 bytes"),
        (safetensors({}, length=2**63), r"a header of \d+ bytes \(the format's limit: 100000000\)"),
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
