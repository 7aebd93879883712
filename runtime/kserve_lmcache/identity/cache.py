"""Remembering a fingerprint, so that the next start with the same files reads none of them.

An entry is found by the names, sizes, mtimes, ctimes, inodes and devices of all files. The ctime
is there because mtimes are often set (archives and downloads restore them, reproducible images
have one for all files), while a file system sets the ctime itself, from its clock. Images that are
mounted as they were built have set ctimes too; these are whole seconds, as are those of file
systems that keep no real ones, and for such files nothing is remembered: two fine-tunes of one
model have the same sizes and could have the same inodes.

A cache that cannot be read or written is not an error: the files are read instead.
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
    """Of the XDG Base Directory Specification; None for a user without a home."""
    if base := environ.get("XDG_CACHE_HOME"):
        return Path(base) / "kserve-lmcache"
    home = environ.get("HOME")
    return Path(home) / ".cache" / "kserve-lmcache" if home else None


def entry_path(directory: Path, scheme: str, files: Sequence[ModelFile]) -> Path | None:
    """Where the fingerprint of these files is kept, or None where their times tell nothing.

    Args:
        directory: the cache's directory.
        scheme: the method and its version; what another one wrote is not found.
        files: all files that matter, in a fixed order.
    """
    if any(_ctime(file) % _SECOND == 0 for file in files):
        return None
    listing = json.dumps([scheme, [[file.name, *file.stamp] for file in files]])
    return directory / f"fingerprint-{hashlib.sha256(listing.encode()).hexdigest()}.json"


def load(path: Path) -> str | None:
    """The digest kept there, if any.

    An entry of another user is not believed: it would let them choose which KV is served.
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
    """Keep a digest; ``model`` is written beside it only for a person who looks."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Readable by its owner alone, as tempfile makes it.
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".fingerprint-")
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump({"model": str(model), "digest": digest}, file)
            Path(name).replace(path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise


def _ctime(file: ModelFile) -> int:
    return file.stamp[2]
