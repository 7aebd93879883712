"""The codec of stored values: a header with a checksum, followed by the payload.

====== ====== =========================================================
offset bytes  content
====== ====== =========================================================
0      4      ``KVLC``
4      2      version
6      2      length of the description
8      8      length of the payload
16     16     checksum
32            description (``KV_2LTD bfloat16:2x30x256x192``), padded
…             payload, at a multiple of 64
====== ====== =========================================================

The checksum is the 128-bit XXH3 hash (https://xxhash.com) of the key, the header without the
checksum, the description and the payload. A value that was stored under another key therefore
fails the check. Hashing runs at about 50 GB/s on one core, which is far faster than any store.
The checksum is not a signature: whoever may write to the store can write a valid value.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass

import xxhash

VERSION = 1

_MAGIC = b"KVLC"
_HEADER = struct.Struct("<4sHHQ16s")
_ALIGNMENT = 64
_MAX_DESCRIPTION = 1024  # bytes

Buffer = bytes | bytearray | memoryview


class CorruptValueError(ValueError):
    """A value in the store differs from the value that was stored under its key."""


@dataclass(frozen=True)
class Layout:
    """The layout of a payload in memory.

    Attributes:
        format: name of LMCache's memory format.
        tensors: data type (torch's name, without ``torch.``) and shape of each tensor.
    """

    format: str
    tensors: tuple[tuple[str, tuple[int, ...]], ...]

    def __str__(self) -> str:
        tensors = (f"{dtype}:{'x'.join(map(str, shape))}" for dtype, shape in self.tensors)
        return " ".join((self.format, *tensors))


def encode_header(key: str, layout: Layout, payload: Buffer) -> bytes:
    """Returns the header of ``key``'s value, whose payload follows it uncopied.

    Raises:
        ValueError: the layout has too many tensors to be described.
    """
    description = _describe(layout)
    start = _HEADER.pack(_MAGIC, VERSION, len(description), len(payload), bytes(16))
    checksum = _checksum(key, start, description, payload)
    return b"".join((start[:-16], checksum, description))


def decode_value(key: str, value: Buffer) -> tuple[Layout, memoryview]:
    """Returns the layout and the payload of ``key``'s value. The payload is not copied.

    Raises:
        CorruptValueError: the value fails a check. The message names the check.
    """
    view = memoryview(value)
    if len(view) < _HEADER.size:
        raise CorruptValueError(f"{len(view)} bytes are less than a header")
    magic, version, described, length, checksum = _HEADER.unpack_from(view)
    if magic != _MAGIC:
        raise CorruptValueError("the value does not begin as a chunk does")
    if version != VERSION:
        raise CorruptValueError(f"the version is {version}, not {VERSION}")
    begin = _HEADER.size + described
    if len(view) != begin + length:
        raise CorruptValueError(f"the value has {len(view)} bytes instead of {begin + length}")
    start = _HEADER.pack(magic, version, described, length, bytes(16))
    description, payload = bytes(view[_HEADER.size : begin]), view[begin:]
    if _checksum(key, start, description, payload) != checksum:
        raise CorruptValueError("the checksum differs")
    return _parse(description), payload


def strip_padding(value: memoryview) -> memoryview:
    """Cuts ``value`` to the length in its header, for stores that keep values of one size only."""
    if len(value) < _HEADER.size:
        return value
    magic, _, described, length, _ = _HEADER.unpack_from(value)
    return value[: _HEADER.size + described + length] if magic == _MAGIC else value


def header_size(layout: Layout) -> int:
    """Returns the length of the header that :func:`encode_header` makes for ``layout``."""
    return _HEADER.size + len(_describe(layout))


def _checksum(key: str, start: bytes, description: bytes, payload: Buffer) -> bytes:
    state = xxhash.xxh3_128()
    for part in (key.encode(), start, description, payload):
        state.update(part)
    return state.digest()


@functools.lru_cache(maxsize=64)
def _describe(layout: Layout) -> bytes:
    text = str(layout).encode("ascii")
    if len(text) > _MAX_DESCRIPTION:
        raise ValueError(f"a layout of {len(layout.tensors)} tensors is too long to describe")
    return text + b" " * (-(_HEADER.size + len(text)) % _ALIGNMENT)


@functools.lru_cache(maxsize=64)
def _parse(description: bytes) -> Layout:
    name, *tensors = description.decode("ascii").split()
    parsed = []
    for tensor in tensors:
        dtype, _, shape = tensor.partition(":")
        parsed.append((dtype, tuple(map(int, shape.split("x")))))
    return Layout(name, tuple(parsed))
