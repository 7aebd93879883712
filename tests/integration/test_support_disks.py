"""A small disk has the faults that it is given, for the processes of its namespace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.disks import DISK_FAULTS, Disk, small_disk
from tests.support.namespaces import mount_namespace

SIZE = 1 << 20
WRITE = """
import os, pathlib, sys
path = pathlib.Path(sys.argv[1]) / "new"
try:
    path.write_bytes(bytes(100_000))
    print("written")
    path.unlink()
except OSError as error:
    print(type(error).__name__ if isinstance(error, FileNotFoundError) else error.strerror)
"""


def write(disk: Disk) -> str:
    """What a process says that writes 100 kB to the disk."""
    command = [*disk.prefix, sys.executable, "-c", WRITE, str(disk.directory)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("full", "No space left on device"),
        ("read-only", "Read-only file system"),
        ("removed", "FileNotFoundError"),
    ],
)
def test_each_fault_of_a_disk(tmp_path: Path, name: str, expected: str) -> None:
    with small_disk(tmp_path, SIZE) as disk:
        kept = disk.seen() / "kept"
        kept.write_bytes(b"kept")
        assert write(disk) == "written"
        with DISK_FAULTS[name](disk):
            assert write(disk) == expected
            assert kept.exists() is (name != "removed")
        assert write(disk) == "written"


def test_the_disk_is_small_and_is_nobody_elses(tmp_path: Path) -> None:
    with small_disk(tmp_path, SIZE) as disk:
        room = os.statvfs(disk.seen())
        assert room.f_blocks * room.f_frsize == SIZE
        assert not disk.directory.exists()
        assert str(tmp_path) not in Path("/proc/mounts").read_text()
        keeper = disk.namespace.keeper
    assert not Path(f"/proc/{keeper}").exists()


def test_a_command_in_a_namespace_keeps_its_directory_and_says_why_it_fails() -> None:
    with mount_namespace() as namespace:
        command = [*namespace.prefix, "pwd"]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert result.stdout.strip() == str(Path.cwd())
        with pytest.raises(AssertionError, match="cannot access"):
            namespace.run("ls", "/nowhere")
