"""The fingerprints of earlier starts. A start with the same files reads none of them.

Names, sizes, mtimes, ctimes, inodes and devices of the files lead to an entry. A program can set
an mtime: archives and downloads restore mtimes, and a reproducible image has one mtime for all
files. The file system sets the ctime from its own clock, except in an image that is mounted as it
was built. The ctimes of such an image, and of a file system without real ctimes, are whole seconds.
The fingerprint of such files is not kept: two fine-tuned models have files of the same sizes, and
may have the same inodes.

A cache that cannot be read or written is no error. The files are read instead.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from kserve_lmcache.identity.files import ModelFile

_SECOND = 1_000_000_000  # in nanoseconds
_DIGEST = re.compile(r"[0-9a-f]{64}")


def directory(environ: Mapping[str, str]) -> Path | None:
    """The cache's directory (XDG Base Directory Specification). None for a user without a home."""
    if base := environ.get("XDG_CACHE_HOME"):
        return Path(base) / "kserve-lmcache"
    home = environ.get("HOME")
    return Path(home) / ".cache" / "kserve-lmcache" if home else None


def entry_path(directory: Path, scheme: str, files: Sequence[ModelFile]) -> Path | None:
    """The path of the entry for these files. None where the ctimes are whole seconds.

    Args:
        directory: the cache's directory.
        scheme: the method and its version. Another scheme does not find the entry.
        files: all files that are hashed, in a fixed order.
    """
    if any(file.ctime % _SECOND == 0 for file in files):
        return None
    listing = json.dumps([scheme, [[file.name, *file.stamp] for file in files]])
    return directory / f"fingerprint-{hashlib.sha256(listing.encode()).hexdigest()}.json"


def load(path: Path) -> str | None:
    """The digest in the entry. None without a valid entry of this user.

    Another user who could write the entry could choose whose KV this server loads.
    """
    try:
        if path.stat().st_uid != os.geteuid():
            return None
        entry = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    digest = entry.get("digest") if isinstance(entry, dict) else None
    return digest if isinstance(digest, str) and _DIGEST.fullmatch(digest) else None


def store(path: Path, model: Path, digest: str) -> None:
    """Write an entry. The model's path is in it for people who read the entry."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # mkstemp makes a file that only its owner can read.
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".fingerprint-")
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump({"model": str(model), "digest": digest}, file)
            Path(name).replace(path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
