"""A directory in one file with a checksum.

The file is :data:`MAGIC`, the BLAKE2b digest (32 bytes) of the rest, and a tar of regular files. It
appears under its name complete or not at all, and a reader checks it before it unpacks anything:
libraries with a wrong byte would crash the engine.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tarfile
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, cast

MAGIC = b"kserve-lmcache compiled code 1\n"
TEMPORARY = ".tmp-"
_DIGEST_SIZE = 32
_PIECE = 1 << 20
# Seconds after which a temporary file is left over.
_ABANDONED = 3600.0


class DamagedArchiveError(Exception):
    """The file is not what :func:`write` made."""


def write(path: Path, directory: Path, names: Iterable[str]) -> int:
    """Writes files to an archive, which replaces another one of that name.

    Args:
        path: of the archive. Its directory is created where it is missing.
        directory: of the files.
        names: of the files, relative to ``directory``.

    Returns:
        The size of the archive in bytes.

    Raises:
        OSError: the archive cannot be written, or a file has vanished: others may refer to it. An
            older archive stays.
    """
    _create(path.parent)
    _remove_abandoned(path.parent)
    number, temporary = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(number, "w+b") as file:
            file.write(MAGIC + bytes(_DIGEST_SIZE))
            with tarfile.open(fileobj=file, mode="w") as tar:
                for name in names:
                    tar.add(directory / name, name, recursive=False)
            file.seek(len(MAGIC) + _DIGEST_SIZE)
            digest = _digest_of_rest(file)
            size = file.tell()
            file.seek(len(MAGIC))
            file.write(digest)
            file.flush()
            os.fchmod(file.fileno(), 0o640)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
    return size


def read(path: Path, directory: Path) -> list[str]:
    """Unpacks an archive.

    Args:
        path: of the archive.
        directory: that gets the files; is empty.

    Returns:
        The names of the files, relative to ``directory``.

    Raises:
        FileNotFoundError: there is no archive.
        DamagedArchiveError: the archive is damaged, or is none. Nothing was unpacked.
        OSError: the archive cannot be read, or the directory cannot be written.
    """
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise DamagedArchiveError("it is no archive of this version")
        expected = file.read(_DIGEST_SIZE)
        if _digest_of_rest(file) != expected:
            raise DamagedArchiveError("its checksum does not match")
        file.seek(len(MAGIC) + _DIGEST_SIZE)
        try:
            with tarfile.open(fileobj=cast("IO[bytes]", file), mode="r:") as tar:
                tar.extractall(directory, filter="data")
                return tar.getnames()
        except tarfile.TarError as error:
            raise DamagedArchiveError(str(error)) from error


def _create(directory: Path) -> None:
    """Creates a directory. Replicas may run as other users of the volume's group."""
    if not directory.is_dir():
        _create(directory.parent)
        with contextlib.suppress(FileExistsError):
            directory.mkdir()
            directory.chmod(directory.stat().st_mode | 0o070)


def _digest_of_rest(file: IO[bytes]) -> bytes:
    state = hashlib.blake2b(digest_size=_DIGEST_SIZE)
    while piece := file.read(_PIECE):
        state.update(piece)
    return state.digest()


def _remove_abandoned(directory: Path) -> None:
    """Removes what writers left that were killed."""
    for path in directory.glob(f"{TEMPORARY}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()
