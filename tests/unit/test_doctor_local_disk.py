from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from kserve_lmcache.config.stores import Disk
from kserve_lmcache.doctor.check import Finding, Status, Subject
from kserve_lmcache.doctor.local_disk import local_disk
from kserve_lmcache.tiers.disk.directory import file_name

MIB = 2**20


def found(*directories: Path, max_bytes: int = MIB) -> list[Finding]:
    return list(local_disk(Subject(disk=Disk(tuple(map(str, directories)), max_bytes))))


def test_no_disk() -> None:
    (finding,) = local_disk(Subject())
    assert (finding.status, finding.evidence) == (Status.SKIPPED, "no disk tier is asked for")


def test_a_directory_with_room_and_one_that_is_yet_to_be_made(tmp_path: Path) -> None:
    (tmp_path / file_name("left from before")).write_bytes(bytes(2048))
    new = tmp_path / "new" / "cache"
    one, other = found(tmp_path, new)
    assert one.status is other.status is Status.OK
    assert one.evidence.startswith(f"{tmp_path} holds 2.0 KiB of 1.0 MiB; ")
    assert other.evidence.startswith(f"{new} holds 0 B of 1.0 MiB; ")
    assert not new.exists()


def test_what_is_already_there_needs_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=256, f_frsize=2048))
    (tmp_path / "chunk").write_bytes(bytes(MIB // 2))
    (finding,) = found(tmp_path)
    assert finding.status is Status.OK
    (finding,) = found(tmp_path, max_bytes=MIB + 1)
    assert finding.status is Status.WARNING
    assert finding.evidence == (
        f"{tmp_path} holds 512.0 KiB of 1.0 MiB; 512.0 KiB are free there: full, it keeps less "
        "than it may"
    )
    assert finding.fix == "Lower max_local_disk_size, or mount a larger volume."


def test_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    proc, file = found(Path("/proc/cache"), tmp_path / "file")
    assert proc.status is file.status is Status.FAILURE
    assert proc.evidence.startswith("/proc cannot be written: ")
    assert "fsGroup" in proc.fix
    assert file.evidence == f"{tmp_path / 'file'} is no directory"
