"""A small disk of its own, which can be full, read-only or gone."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.namespaces import Namespace, mount_namespace

_PIECE = bytes(1 << 16)


@dataclass(frozen=True)
class Disk:
    """A file system in memory.

    Attributes:
        directory: on the disk, for the commands that :attr:`prefix` starts.
        mount_point: of the disk.
    """

    namespace: Namespace
    mount_point: Path

    @property
    def prefix(self) -> tuple[str, ...]:
        return self.namespace.prefix

    @property
    def directory(self) -> Path:
        return self.mount_point / "cache"

    def seen(self) -> Path:
        """The directory from here."""
        return self.namespace.seen(self.directory.parent) / self.directory.name

    @contextmanager
    def full(self) -> Iterator[None]:
        """No byte of room is left (ENOSPC)."""
        filling = self.seen().parent / "filling"
        with filling.open("wb", buffering=0) as file:
            for piece in (_PIECE, b"\\0"):
                with contextlib.suppress(OSError):
                    while file.write(piece):
                        pass
        try:
            yield
        finally:
            filling.unlink()

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Writes fail (EROFS), reads go on; it begins once no file is open for writing."""
        self._remount_read_only(seconds=10)
        try:
            yield
        finally:
            self.namespace.run("mount", "-o", "remount,rw", str(self.mount_point))

    def _remount_read_only(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self.namespace.run("mount", "-o", "remount,ro", str(self.mount_point))
            except AssertionError:  # busy
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    @contextmanager
    def removed(self) -> Iterator[None]:
        """The directory and all that is in it is removed; at the end it is there again, empty."""
        gone = self.seen().with_name("gone")  # at once: somebody may be writing there
        self.seen().rename(gone)
        shutil.rmtree(gone)
        try:
            yield
        finally:
            with contextlib.suppress(FileExistsError):
                self.seen().mkdir()


# What can happen to a disk, by name.
DISK_FAULTS: dict[str, Callable[[Disk], AbstractContextManager[None]]] = {
    "full": Disk.full,
    "read-only": Disk.read_only,
    "removed": Disk.removed,
}


@contextmanager
def small_disk(directory: Path, size: int) -> Iterator[Disk]:
    """A disk of ``size`` bytes, mounted under ``directory`` in a namespace of its own."""
    mount_point = directory.resolve() / "disk"
    mount_point.mkdir()
    with mount_namespace() as namespace:
        options = f"size={size},mode=0777"
        namespace.run("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(mount_point))
        disk = Disk(namespace, mount_point)
        disk.seen().mkdir()
        yield disk
