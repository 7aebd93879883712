"""The places of the tensors in a safetensors file.

A file of this format (https://github.com/huggingface/safetensors#format) begins with the length of
the header, a little-endian integer of 8 bytes. The header is a JSON object with an entry for each
tensor. The tensors' bytes follow, at ``data_offsets`` counted from the header's end.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kserve_lmcache.errors import IdentityError
from kserve_lmcache.identity.files import unreadable

_LENGTH_BYTES = 8
# The library refuses longer headers (MAX_HEADER_SIZE in safetensors/src/tensor.rs).
_LONGEST = 100_000_000
# The start of a Git LFS pointer. As a length, it is far above the limit.
_GIT_LFS_POINTER = b"version "
_AGAIN = "The file is incomplete or damaged: download it again."


def read_header(path: Path, size: int) -> tuple[int, list[tuple[int, int]]]:
    """The offset of the tensors' bytes, and the offset and length of every tensor.

    Offsets and lengths are in bytes. Offsets count from the start of the file.

    Args:
        path: the file.
        size: the length of the file in bytes.

    Raises:
        IdentityError: the file is truncated, malformed or unreadable.
    """
    try:
        with path.open("rb") as file:
            prefix = file.read(_LENGTH_BYTES)
            length = int.from_bytes(prefix, "little")
            is_valid = len(prefix) == _LENGTH_BYTES and length <= min(_LONGEST, size - len(prefix))
            text = file.read(length) if is_valid else b""
    except OSError as error:
        raise unreadable(path, error) from error
    if prefix == _GIT_LFS_POINTER:
        raise IdentityError(
            path, "is a Git LFS pointer, not the weights", "Run git lfs pull in the repository."
        )
    if not is_valid:
        message = (
            f"has {size} bytes and a header of {length} bytes (the format's limit: {_LONGEST})"
        )
        raise IdentityError(path, message, _AGAIN)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise IdentityError(path, f"has a header that is not JSON ({error})", _AGAIN) from error
    if not isinstance(header, dict):
        raise IdentityError(path, "has a header that is not a JSON object", _AGAIN)
    data_start = _LENGTH_BYTES + length
    tensors = [
        _tensor(path, name, entry, data_start, size)
        for name, entry in header.items()
        if name != "__metadata__"
    ]
    return data_start, tensors


def _tensor(path: Path, name: str, entry: Any, data_start: int, size: int) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    # isinstance takes JSON's true for an int.
    if not isinstance(offsets, list) or [type(offset) for offset in offsets] != [int, int]:
        raise IdentityError(path, f"does not say where tensor {name!r} is (data_offsets)", _AGAIN)
    begin, end = offsets
    if not 0 <= begin <= end:
        raise IdentityError(path, f"has data_offsets [{begin}, {end}] for tensor {name!r}", _AGAIN)
    if data_start + end > size:
        raise IdentityError(
            path,
            f"has {size} bytes, but tensor {name!r} ends at byte {data_start + end} (data_offsets)",
            _AGAIN,
        )
    return data_start + begin, end - begin
