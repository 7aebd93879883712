"""The bytes of the weights that are hashed, and a fast way to read them.

Of a safetensors file: the whole header; of every tensor the first and last 4 KiB, and a 4 KiB piece
for each 16 MiB between (at least one, in the middle); tensors of up to 12 KiB whole. Of a file in
another format: the first and last MiB, and a 4 KiB piece for each MiB between, up to 16384 pieces.
An archive of ``torch.save`` or ``numpy.savez`` ends with a directory that holds a CRC-32 of every
record, so the last MiB alone shows most changes.

Pieces less than 16 KiB apart are read as one range: on a network volume a read costs its latency,
whatever its length.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kserve_lmcache.errors import IdentityError
from kserve_lmcache.identity.files import ModelFile, unreadable
from kserve_lmcache.identity.safetensors_header import read_header

_MIB = 2**20
_PIECE = 4096
_TENSOR_STRIDE = 16 * _MIB
_FILE_STRIDE = _MIB
_MOST_PIECES = 16384
_WORTH_JOINING = 16384
# A thread waits for the volume, not for a core, so more threads than cores help.
_THREADS = 32
_BATCH_RANGES = 64

Range = tuple[int, int]
"""Offset and length, in bytes."""


def hash_weights(files: Sequence[ModelFile], *, full: bool) -> tuple[list[list[str]], int]:
    """The hashes of the sampled (or all) bytes of each file, and the number of bytes read.

    Raises:
        IdentityError: a file is damaged, unreadable, or became shorter during the read.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        ranges = list(pool.map(lambda file: _ranges(file, full=full), files))
        batches = [
            (number, of_file[first : first + _BATCH_RANGES])
            for number, of_file in enumerate(ranges)
            for first in range(0, len(of_file), _BATCH_RANGES)
        ]
        hashes: list[list[str]] = [[] for _ in files]
        results = pool.map(lambda batch: _hash_batch(files[batch[0]].path, batch[1]), batches)
        for (number, _), digest in zip(batches, results, strict=True):
            hashes[number].append(digest)
    return hashes, sum(length for of_file in ranges for _, length in of_file)


def _ranges(file: ModelFile, *, full: bool) -> list[Range]:
    """The ranges to hash, by offset."""
    wanted: Iterable[Range] = _file_pieces(file.size)
    if file.path.suffix == ".safetensors":
        data_start, tensors = read_header(file.path, file.size)
        pieces = (piece for tensor in tensors for piece in _tensor_pieces(*tensor))
        wanted = [(0, data_start), *pieces]
    if full:
        wanted = [(0, file.size)]
    return list(_split(_joined(sorted(wanted))))


def _tensor_pieces(start: int, length: int) -> Iterator[Range]:
    if length <= 3 * _PIECE:
        yield start, length
        return
    yield start, _PIECE
    between = max(1, length // _TENSOR_STRIDE)
    for number in range(1, between + 1):
        yield start + (length - _PIECE) * number // (between + 1), _PIECE
    yield start + length - _PIECE, _PIECE


def _file_pieces(size: int) -> Iterator[Range]:
    between = size - 2 * _MIB
    if between <= 0:
        yield 0, size
        return
    yield 0, _MIB
    count = min(_MOST_PIECES, -(-between // _FILE_STRIDE))
    for number in range(count):
        offset = _MIB + between * number // count
        yield offset, min(_PIECE, size - offset)
    yield size - _MIB, _MIB


def _joined(ranges: Iterable[Range]) -> Iterator[Range]:
    start = end = 0
    for offset, length in ranges:
        if offset > end + _WORTH_JOINING:
            yield start, end - start
            start = offset
        end = max(end, offset + length)
    yield start, end - start


def _split(ranges: Iterable[Range]) -> Iterator[Range]:
    """Ranges of at most a MiB, so that the threads hold little memory at a time."""
    for start, length in ranges:
        for offset in range(start, start + length, _MIB):
            yield offset, min(_MIB, start + length - offset)


def _hash_batch(path: Path, ranges: Iterable[Range]) -> str:
    digest = hashlib.sha256()
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            for offset, length in ranges:
                for content in _read(descriptor, offset, length, path):
                    digest.update(content)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise unreadable(path, error) from error
    return digest.hexdigest()


def _read(descriptor: int, offset: int, length: int, path: Path) -> Iterator[bytes]:
    """The bytes of a range. One ``pread`` may return fewer bytes than the range has."""
    while length:
        content = os.pread(descriptor, length, offset)
        if not content:
            raise IdentityError(
                path,
                f"ended at byte {offset} while it was read",
                "Wait until the download is complete, then start again.",
            )
        yield content
        offset += len(content)
        length -= len(content)
