"""Objects in the shared memory: the payload of a chunk behind a header with its checksum.

The format is that of values in the tiers (:mod:`kserve_lmcache.tiers.guard.codec`). The header is
of the object's own name, so that a reader sees whether it reads what it means: another object, one
that was never written, and one that is written at the same time all fail the check.
"""

from __future__ import annotations

from kserve_lmcache.cache_server.messages import Row
from kserve_lmcache.tiers.guard.codec import (
    CorruptValueError,
    Layout,
    decode_value,
    encode_header,
    header_size,
)

# The model of objects that prove the way to the server. They are not written to tiers below.
PROOF = "kserve-lmcache-proof"
_FORMAT = "BLOCKS"


def name_of(row: Row, digest: bytes) -> str:
    """The name of a worker's object, which no other object has."""
    rank, world = row.rank
    name = f"{row.model}@{rank}.{world}@{digest.hex()}"
    return f"{name}@{row.salt}" if row.salt else name


def payload_begin(payload_bytes: int) -> int:
    """Where the payload of so many bytes begins in an object."""
    return header_size(_layout(payload_bytes))


def seal(name: str, memory: memoryview, payload_bytes: int) -> None:
    """Write the header of an object whose payload is written."""
    begin = payload_begin(payload_bytes)
    memory[:begin] = encode_header(name, _layout(payload_bytes), memory[begin:])


def fault_of(name: str, memory: memoryview) -> str:
    """Why an object is not what was stored under its name; empty where it is."""
    try:
        decode_value(name, memory)
    except (CorruptValueError, ValueError) as error:
        return str(error)
    return ""


def _layout(payload_bytes: int) -> Layout:
    return Layout(_FORMAT, (("uint8", (payload_bytes,)),))
