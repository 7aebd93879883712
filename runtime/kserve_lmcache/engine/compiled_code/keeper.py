"""Gives a server a directory to compile into, filled from the archive of an earlier start.

The engine never works in the directory that outlives the server: vLLM and torch write some files of
their caches in place, and a reader that meets half a file ends. Each server compiles into a
directory of its own below the directory for temporary files, and an archive is replaced at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from kserve_lmcache.engine.compiled_code import archive, key

logger = logging.getLogger(__name__)

ARCHIVE = "compiled"
# The variable of each cache, and its directory below the working directory.
CACHES = {
    "VLLM_CACHE_ROOT": "vllm",
    "TORCHINDUCTOR_CACHE_DIR": "torch",
    "TRITON_CACHE_DIR": "triton",
}
# Bytes of an archive. Every set of arguments adds its own code.
_MAX_BYTES = 2 * 2**30
_MIB = 2**20
_SLOTS = 64


class Keeper:
    """The compiled code of one server.

    Args:
        directory: that outlives the server; may be missing, full or read-only.
        model: directory or hub id, with the revision.
        name: of the model, for people.
        max_bytes: of the archive. A larger one is not used, and the code of this start replaces it.
    """

    def __init__(self, directory: Path, model: str, name: str, max_bytes: int = _MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._unpacked: frozenset[tuple[str, int]] = frozenset()
        self._lock, self.working_directory = _working_directory()
        relative = key.directory_of(model, name, self.working_directory)
        self.archive = directory.absolute() / relative / ARCHIVE

    def redirect(self, environ: MutableMapping[str, str], given: Mapping[str, str]) -> None:
        """Fills the working directory, and lets the caches be there.

        Args:
            environ: the environment of this process, which the engine's processes inherit.
            given: the environment in which this process started. A cache that it names stays where
                the user has put it; torch names its own when it is imported.
        """
        moved = {name: path for name, path in CACHES.items() if not given.get(name)}
        for name in CACHES.keys() - moved.keys():
            logger.info("compile_cache_dir does not keep the cache that %s names", name)
        self._unpack()
        for name, path in moved.items():
            environ[name] = str(self.working_directory / path)

    def save(self) -> None:
        """Writes the archive, when this start has compiled anything. Logs a failure."""
        start = time.monotonic()
        try:
            files = self._files()
            if files <= self._unpacked:
                return
            # All of them: files refer to each other.
            names = sorted(name for name, _ in files)
            size = archive.write(self.archive, self.working_directory, names)
        except OSError as error:
            reason = error.strerror or error
            logger.warning(
                "Compiled code is not kept, and the next start compiles again: %s cannot be "
                "written: %s (compile_cache_dir). Mount a volume there that this user may write, "
                "with room.",
                self.archive,
                reason,
            )
            return
        self._unpacked = frozenset(files)
        logger.info(
            "Compiled code is kept for the next start: %d files, %d MiB in %s (%.1f s)",
            len(names),
            size // _MIB,
            self.archive,
            time.monotonic() - start,
        )

    def close(self) -> None:
        """Removes the working directory."""
        shutil.rmtree(self.working_directory, ignore_errors=True)
        os.close(self._lock)

    def _unpack(self) -> None:
        try:
            if (size := self.archive.stat().st_size) > self._max_bytes:
                logger.info("%s is replaced: it has grown to %d MiB", self.archive, size // _MIB)
                return
            names = archive.read(self.archive, self.working_directory)
        except FileNotFoundError:
            logger.info("There is no compiled code of an earlier start in %s", self.archive.parent)
        except (archive.DamagedArchiveError, OSError) as error:
            _empty(self.working_directory)
            logger.warning(
                "Compiled code of an earlier start is not used: %s: %s", self.archive, error
            )
        else:
            self._unpacked = frozenset(self._files())
            logger.info("%d files of compiled code come from %s", len(names), self.archive)

    def _files(self) -> set[tuple[str, int]]:
        """The names and sizes of the files that an archive holds."""
        found = set()
        for folder, _, names in os.walk(self.working_directory):
            for name in names:
                path = Path(folder, name)
                with contextlib.suppress(FileNotFoundError):
                    state = path.lstat()
                    if stat.S_ISREG(state.st_mode) and not name.endswith((".lock", ".tmp")):
                        relative = path.relative_to(self.working_directory)
                        found.add((str(relative), state.st_size))
        return found


def _working_directory() -> tuple[int, Path]:
    """An empty directory that this process alone uses, and the descriptor of its lock.

    The first server of a machine or a pod always gets the same one, because some versions of vLLM
    keep absolute paths.

    Raises:
        OSError: the directory for temporary files cannot be used.
    """
    base = Path(tempfile.gettempdir()) / f"kserve-lmcache-compiled-{os.getuid()}"
    base.mkdir(0o700, exist_ok=True)
    state = base.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise PermissionError(f"{base} belongs to another user, or others may write there")
    for slot in range(_SLOTS):
        lock = os.open(base / f"{slot}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            continue
        _empty(base / str(slot))
        return lock, base / str(slot)
    raise BlockingIOError(f"{_SLOTS} servers compile into {base}")


def _empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(0o700, exist_ok=True)
