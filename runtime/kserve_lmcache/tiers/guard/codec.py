"""The codec of stored values: a header with checksums, followed by the payload.

====== ====== =========================================================
offset bytes  content
====== ====== =========================================================
0      4      ``KVLC``
4      2      version
6      2      length of the description
8      8      length of the payload
16     16     checksum of the payload
32     16     checksum of the header
48            description (``KV_2LTD bfloat16:2x30x256x192``), padded
…             payload, at a multiple of 64
====== ====== =========================================================

A checksum is a 128-bit XXH3 hash (https://xxhash.com). That of the header is made of the key, the
header without this checksum, and the description. A value that was stored under another key
therefore fails the check. A reader may make room for the payload once it has the header, and
check the payload piece by piece as it arrives.
The checksums are no signatures: whoever may write to the store can write a valid value.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass

import xxhash

VERSION = 2

_MAGIC = b"KVLC"
_HEADER = struct.Struct("<4sHHQ16s16s")
_ALIGNMENT = 64
_CHECKSUM = 16  # bytes
_MAX_DESCRIPTION = 1024  # bytes, without padding
MAX_HEADER = _HEADER.size + _MAX_DESCRIPTION + _ALIGNMENT  # bytes

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


@dataclass(frozen=True)
class Header:
    """What a value's header says.

    Attributes:
        size: bytes of the header.
        layout: of the payload.
        payload_size: bytes of the payload.
        checksum: of the payload.
    """

    size: int
    layout: Layout
    payload_size: int
    checksum: bytes


class Checksum:
    """The checksum of a payload, made piece by piece."""

    def __init__(self) -> None:
        self._state = xxhash.xxh3_128()

    def add(self, piece: Buffer) -> None:
        """Takes the next piece of the payload."""
        self._state.update(piece)

    def check(self, header: Header) -> None:
        """Compares what was added with what was stored.

        Raises:
            CorruptValueError: it differs.
        """
        if self._state.digest() != header.checksum:
            raise CorruptValueError("the checksum differs")


def encode_header(key: str, layout: Layout, payload: Buffer) -> bytes:
    """Returns the header of ``key``'s value, whose payload follows it uncopied.

    Raises:
        ValueError: the layout has too many tensors to be described.
    """
    description = _describe(layout)
    checksum = xxhash.xxh3_128_digest(payload)
    start = _HEADER.pack(
        _MAGIC, VERSION, len(description), len(payload), checksum, bytes(_CHECKSUM)
    )[:-_CHECKSUM]
    return b"".join((start, _header_checksum(key, start, description), description))


def decode_header(key: str, begin: Buffer, size: int) -> Header:
    """Returns the header of ``key``'s value.

    Args:
        key: of the value.
        begin: the first bytes of the value: :data:`MAX_HEADER`, or all of a shorter value.
        size: of the whole value in bytes.

    Raises:
        CorruptValueError: the header fails a check. The message names the check.
    """
    view = memoryview(begin)
    if len(view) < _HEADER.size:
        raise CorruptValueError(f"{size} bytes are less than a header")
    magic, version, described, length, checksum, own_checksum = _HEADER.unpack_from(view)
    if magic != _MAGIC:
        raise CorruptValueError("the value does not begin as a chunk does")
    if version != VERSION:
        raise CorruptValueError(f"the version is {version}, not {VERSION}")
    header_end = _HEADER.size + described
    if size != header_end + length:
        raise CorruptValueError(f"the value has {size} bytes instead of {header_end + length}")
    start = bytes(view[: _HEADER.size - _CHECKSUM])
    description = bytes(view[_HEADER.size : header_end])
    if _header_checksum(key, start, description) != own_checksum:
        raise CorruptValueError("the header's checksum differs")
    try:
        layout = _parse(description)
    except ValueError:
        raise CorruptValueError("the header describes no layout") from None
    return Header(header_end, layout, length, checksum)


def decode_value(key: str, value: Buffer) -> tuple[Layout, memoryview]:
    """Returns the layout and the payload of ``key``'s value. The payload is not copied.

    Raises:
        CorruptValueError: the value fails a check. The message names the check.
    """
    view = memoryview(value)
    header = decode_header(key, view, len(view))
    payload, checksum = view[header.size :], Checksum()
    checksum.add(payload)
    checksum.check(header)
    return header.layout, payload


def strip_padding(value: memoryview) -> memoryview:
    """Cuts ``value`` to the length in its header, for stores that keep values of one size only."""
    if len(value) < _HEADER.size:
        return value
    magic, _, described, length, *_ = _HEADER.unpack_from(value)
    return value[: _HEADER.size + described + length] if magic == _MAGIC else value


def header_size(layout: Layout) -> int:
    """Returns the length of the header that :func:`encode_header` makes for ``layout``."""
    return _HEADER.size + len(_describe(layout))


def _header_checksum(key: str, start: bytes, description: bytes) -> bytes:
    return xxhash.xxh3_128_digest(b"\0".join((key.encode(), start + description)))


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
