"""The error of a model whose content cannot be told."""

from __future__ import annotations

from pathlib import Path

from kserve_lmcache.errors import KServeLMCacheError


class IdentityError(KServeLMCacheError):
    """A model's files are missing, damaged or unreadable; names the file and the fix."""

    def __init__(self, path: Path, what: str, fix: str) -> None:
        self.path = path
        super().__init__(f"{path}: {what}. {fix}")


def unreadable(path: Path, error: OSError) -> IdentityError:
    """The error for a file that the operating system does not let us read."""
    return IdentityError(
        path,
        f"cannot be read ({error.strerror or error})",
        "Give the user of this process read access to the model's files, or download them again.",
    )
