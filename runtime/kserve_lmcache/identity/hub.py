"""The content of a model in the Hugging Face hub's cache, by its file names alone.

There a snapshot's files are links to ``blobs/<etag>``, and an etag is the SHA-256 of a large file
and the Git SHA-1 of a small one (the layout: ``hf_hub_download`` in
``huggingface_hub/file_download.py``). A file comes to that name only when its download is complete.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from kserve_lmcache.identity.files import ModelFile

# Hubs other than huggingface.co may send etags that do not name the content; those have neither
# length.
_ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def etags(directory: Path, files: Sequence[ModelFile]) -> list[str] | None:
    """The etag of each file, or None where any is not a link into the hub's cache.

    Reads links, never a file.
    """
    snapshot = directory.resolve()
    repository = snapshot.parent.parent
    if snapshot.parent.name != "snapshots" or not repository.name.startswith("models--"):
        return None
    found = []
    for file in files:
        link = snapshot / file.name
        if not link.is_symlink():
            return None
        # Only the link's own target is the etag: a blob may itself be a link to a shared one.
        target = Path(os.path.normpath(link.parent / link.readlink()))
        if target.parent != repository / "blobs" or not _ETAG.fullmatch(target.name):
            return None
        found.append(target.name)
    return found
