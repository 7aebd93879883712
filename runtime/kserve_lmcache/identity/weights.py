"""The fingerprint of a model's, or a LoRA adapter's, content.

It tells models apart that are served from one path (KServe mounts every model at ``/mnt/models``)
and finds the same model again at another. What the engine's flags change (dtype, quantization at
load time, parallel sizes) is not in the files and must be in the key beside it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kserve_lmcache.identity import cache, hub
from kserve_lmcache.identity.files import ModelFile, model_directory, model_files, settings_content
from kserve_lmcache.identity.samples import hash_weights

# Raise it with every change of which bytes are hashed or how: digests of two schemes are unlike.
SCHEME = 1


@dataclass(frozen=True)
class Fingerprint:
    """What a model is, by its content.

    Attributes:
        digest: 64 hexadecimal digits; alike for the same content at any path. Digests of
            different methods differ even for the same content.
        method: ``hub`` (names of the hub's blobs), ``sampled`` or ``full``.
        summary: a line for the log: how many files, and how much of them was read.
        seconds: how long it took.
    """

    digest: str
    method: str
    summary: str
    seconds: float


def fingerprint(
    model: Path, *, full: bool = False, cache_directory: Path | None = None
) -> Fingerprint:
    """Tell what a model's files hold, in seconds for any size.

    The first of these that can be used:

    1. ``full``: every byte of the weights is read; no cache is used, no name is believed.
    2. ``hub``: the directory is a snapshot in the hub's cache, so its links name the content; no
       file is read.
    3. ``sampled``: sizes, safetensors headers, and pieces of every tensor (see
       :mod:`kserve_lmcache.identity.samples`), or what the cache remembers of the same files.

    Paths, times, owners and permissions do not change the digest. What would go unseen:

    - ``sampled``: changed bytes outside the pieces. Training, merging, pruning and quantizing
      change nearly all of a tensor's elements and are seen, in any single safetensors tensor. An
      edit of a few rows, of one attention head, or of one expert in a tensor that stacks them can
      be missed; so can a change of one small tensor in a GGUF file or another format without a
      safetensors header. Use ``full`` for models made like that.
    - ``hub``: a blob that was changed after its download, under its old name.
    - the cache: content that was replaced while all files kept name, size, mtime, ctime, inode
      and device. A process cannot set a ctime, so this takes a clock set back, a write below the
      file system, an image built with false times, or a second write within one tick of the file
      system's clock (milliseconds on local disks).

    A file that changes while it is read is out of scope: the digest is then of neither content.

    Args:
        model: a directory of a model or an adapter, or one file of weights.
        full: read everything.
        cache_directory: where sampled fingerprints are remembered, one file of about 150 bytes
            for each set of files. None, or one that cannot be written, costs only time. Nothing
            is written anywhere else.

    Raises:
        IdentityError: the model has no weights, or a file of it is truncated, malformed or
            unreadable.
    """
    start = time.perf_counter()
    files = model_files(model)
    method, digest, summary = _identify(model, files, full, cache_directory)
    return Fingerprint(digest, method, summary, time.perf_counter() - start)


def _identify(
    model: Path, files: Sequence[ModelFile], full: bool, cache_directory: Path | None
) -> tuple[str, str, str]:
    count = f"{len(files)} file{'s' if len(files) != 1 else ''}"
    if full:
        digest, read = _hash(files, "full")
        return "full", digest, f"{count}, all {read:,} bytes of weights read"
    names = hub.etags(model_directory(model), files)
    if names is not None:
        entries = [[file.name, etag] for file, etag in zip(files, names, strict=True)]
        return "hub", _combine("hub", entries), f"{count}, named by the hub's cache, none read"
    entry = cache_directory and cache.entry_path(cache_directory, f"sampled {SCHEME}", files)
    if entry and (known := cache.load(entry)):
        return "sampled", known, f"{count}, none read, remembered in {entry}"
    digest, read = _hash(files, "sampled")
    if entry:
        cache.store(entry, model, digest)
    size = sum(file.size for file in files if file.is_weights)
    return "sampled", digest, f"{count}, {read:,} of {size:,} bytes of weights read"


def _hash(files: Sequence[ModelFile], method: str) -> tuple[str, int]:
    # The settings first: a mistake in them should not wait for an hour of reading.
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
    """One digest of all; JSON, since it keeps apart what plain joining could confuse."""
    return hashlib.sha256(json.dumps([SCHEME, method, entries]).encode()).hexdigest()
