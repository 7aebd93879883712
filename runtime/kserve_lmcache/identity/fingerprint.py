"""The fingerprint of a model or a LoRA adapter: a digest of the content of its files.

KServe mounts every model at ``/mnt/models``, so a path does not identify a model. Two models at one
path have different fingerprints. Copies of one model have the same fingerprint at any path. Flags
that change the KV (dtype, quantization at load time, parallel sizes) are not in the files: they
enter a key by :mod:`.namespace`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kserve_lmcache.identity import fingerprint_cache
from kserve_lmcache.identity.files import ModelFile, model_directory, model_files, settings_content
from kserve_lmcache.identity.samples import hash_weights

# The version of the hashing. A change of the hashed bytes raises it, so that digests differ.
SCHEME = 1
# A hub other than huggingface.co may send etags that do not name the content. They have other
# lengths.
_ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class Fingerprint:
    """The digest of a model's content.

    Attributes:
        digest: 64 hexadecimal digits. The digests of two methods differ, even for one content.
        method: ``hub`` (the names of blobs in the hub's cache), ``sampled`` or ``full``.
        summary: a line for the log: the number of files, and the bytes that were read.
        seconds: the time that the fingerprint took.
    """

    digest: str
    method: str
    summary: str
    seconds: float


def fingerprint(
    model: Path, *, full: bool = False, cache_directory: Path | None = None
) -> Fingerprint:
    """Compute the fingerprint, by the first of these methods that applies:

    1. ``full``, when asked for. It reads every byte of the weights, and uses no cache.
    2. ``hub``, when the directory is a snapshot in the hub's cache. It reads no file: the links in
       the snapshot name the content.
    3. ``sampled``. It reads sizes, safetensors headers and pieces of every tensor (see
       :mod:`.samples`), or finds the digest of an earlier start in the cache.

    Paths, times, owners and permissions do not change the digest. These changes are not detected:

    - By ``sampled``: changed bytes outside the pieces. Training, merging, pruning and quantizing
      change nearly every element of a tensor and are detected in any single safetensors tensor. An
      edit of a few rows, of one attention head, or of one expert in a tensor of stacked experts
      can be missed. So can a change of one small tensor in a GGUF file or in another format
      without a safetensors header. Use ``full`` for such models.
    - By ``hub``: a blob that was changed after its download, under its old name.
    - By the cache: new content in files of the same name, size, mtime, ctime, inode and device. A
      process cannot set a ctime, so such content needs a clock that was set back, a write below
      the file system, an image with false times, or a second write within one tick of the file
      system's clock (milliseconds on local disks).

    The digest of a file that changes during the read is that of neither content.

    Args:
        model: the directory of a model or an adapter, or one file of weights.
        full: whether to read every byte.
        cache_directory: the directory for sampled fingerprints: one file of about 150 bytes for
            each set of files. Without it, or when it cannot be written, every start reads the
            pieces. Nothing else is written.

    Raises:
        IdentityError: the model has no weights, or a file is truncated, malformed or unreadable.
    """
    start = time.perf_counter()
    files = model_files(model)
    method, digest, summary = _identify(model, files, full, cache_directory)
    return Fingerprint(digest, method, summary, time.perf_counter() - start)


def _identify(
    model: Path, files: Sequence[ModelFile], full: bool, cache_directory: Path | None
) -> tuple[str, str, str]:
    """Method, digest and summary."""
    count = f"{len(files)} file{'s' if len(files) != 1 else ''}"
    if full:
        digest, read = _hash(files, "full")
        return "full", digest, f"{count}, all {read:,} bytes of weights read"
    etags = _hub_etags(model_directory(model), files)
    if etags is not None:
        entries = [[file.name, etag] for file, etag in zip(files, etags, strict=True)]
        return "hub", _combine("hub", entries), f"{count}, named by the hub's cache, none read"
    entry = cache_directory and fingerprint_cache.entry_path(
        cache_directory, f"sampled {SCHEME}", files
    )
    if entry and (known := fingerprint_cache.load(entry)):
        return "sampled", known, f"{count}, none read, digest cached in {entry}"
    digest, read = _hash(files, "sampled")
    if entry:
        fingerprint_cache.store(entry, model, digest)
    size = sum(file.size for file in files if file.is_weights)
    return "sampled", digest, f"{count}, {read:,} of {size:,} bytes of weights read"


def _hash(files: Sequence[ModelFile], method: str) -> tuple[str, int]:
    # The settings come first: reading all weights may take an hour, and an error must not wait.
    entries: list[list[Any]] = [
        [file.name, hashlib.sha256(settings_content(file)).hexdigest()]
        for file in files
        if not file.is_weights
    ]
    weights = [file for file in files if file.is_weights]
    hashes, read = hash_weights(weights, full=method == "full")
    for file, of_file in zip(weights, hashes, strict=True):
        entries.append([file.name, file.size, of_file])
    return _combine(method, entries), read


def _combine(method: str, entries: Sequence[Any]) -> str:
    """The digest of all entries. JSON keeps entries apart that joined texts could confuse."""
    return hashlib.sha256(json.dumps([SCHEME, method, entries]).encode()).hexdigest()


def _hub_etags(directory: Path, files: Sequence[ModelFile]) -> list[str] | None:
    """The etag of each file. None unless every file is a link into the hub's cache.

    In that cache a snapshot's files are links to ``blobs/<etag>``. The etag of a large file is its
    SHA-256, that of a small one its Git SHA-1 (``hf_hub_download`` in
    ``huggingface_hub/file_download.py``). A file gets that name when its download is complete.
    """
    snapshot = directory.resolve()
    repository = snapshot.parent.parent
    if snapshot.parent.name != "snapshots" or not repository.name.startswith("models--"):
        return None
    etags = []
    for file in files:
        link = snapshot / file.name
        if not link.is_symlink():
            return None
        # The etag is the direct target of the link: a blob may be a link to a shared blob.
        target = Path(os.path.normpath(link.parent / link.readlink()))
        if target.parent != repository / "blobs" or not _ETAG.fullmatch(target.name):
            return None
        etags.append(target.name)
    return etags
