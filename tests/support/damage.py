"""Values of a store that are changed where they lie, in Redis and put back, or on a disk."""

from __future__ import annotations

import contextlib
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import redis

from tests.support.stores import Store

Values = dict[bytes, bytes]
Change = Callable[[Values], Values]

# What the header of a stored chunk may hold its version in.
HEADER_VERSION = slice(4, 6)
CUT = 1000
SHORT = 100  # bytes: LMCache's connector stores a few numbers beside each chunk


def each(change: Callable[[bytes], bytes]) -> Change:
    """Of one value that makes one of all values; what it leaves empty is left alone."""

    def changed(values: Values) -> Values:
        return {key: new for key, value in values.items() if (new := change(value))}

    return changed


def truncated(value: bytes) -> bytes:
    """Without its end."""
    return value[: -min(CUT, max(len(value) // 2, 1))]


def extended(value: bytes) -> bytes:
    """With more behind its end."""
    return value + value[:CUT]


def bit_flipped(value: bytes) -> bytes:
    """With one bit in its middle the other way round, in the exponent of a number where it is one.

    In its last bits a float32 may change without a trace in any answer. What is short is left
    alone: a bit of all that are stored is next to never one of its own.
    """
    place = len(value) // 2 | 3
    return _with_bytes(value, slice(place, place + 1), 0x40) if len(value) > SHORT else b""


def header_changed(value: bytes) -> bytes:
    """With a header of another version, where it is longer."""
    return _with_bytes(value, HEADER_VERSION, 0xFF) if len(value) > HEADER_VERSION.stop else b""


def swapped(values: Values) -> Values:
    """Each with the value of another key, of the same length where there is one."""
    alike: dict[int, list[bytes]] = defaultdict(list)
    for key in sorted(values):
        alike[len(values[key])].append(key)
    groups = [keys for keys in alike.values() if len(keys) > 1]
    groups.append([keys[0] for keys in alike.values() if len(keys) == 1])
    new: Values = {}
    for keys in groups:
        others = keys[1:] + keys[:1]
        new.update({key: values[other] for key, other in zip(keys, others, strict=True)})
    return new


DAMAGES: dict[str, Change] = {
    "truncated": each(truncated),
    "extended": each(extended),
    "bit flipped": each(bit_flipped),
    "header changed": each(header_changed),
    "swapped": swapped,
}


def _flip(chance: random.Random, value: bytes, other: bytes) -> bytes:
    changed = bytearray(value)
    changed[chance.randrange(len(value))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _truncate(chance: random.Random, value: bytes, other: bytes) -> bytes:
    return value[: chance.randrange(1, len(value))]


def _extend(chance: random.Random, value: bytes, other: bytes) -> bytes:
    return value + chance.randbytes(chance.randrange(1, 100))


def _anothers(chance: random.Random, value: bytes, other: bytes) -> bytes:
    return other


def _later_version(chance: random.Random, value: bytes, other: bytes) -> bytes:
    return value[:4] + chance.randrange(2, 2**16).to_bytes(2, "little") + value[6:]


def _noise(chance: random.Random, value: bytes, other: bytes) -> bytes:
    begin = chance.randrange(len(value))
    length = chance.randrange(1, len(value) - begin + 1)
    noise = chance.randbytes(length)
    changed = value[:begin] + noise + value[begin + length :]
    return changed if changed != value else _flip(chance, value, other)


# One of a value that was stored, and of another key's.
RANDOM_CHANGES: tuple[Callable[[random.Random, bytes, bytes], bytes], ...] = (
    _flip,
    _truncate,
    _extend,
    _anothers,
    _later_version,
    _noise,
)


def damage_files(directory: Path, change: Change) -> int:
    """Change the values of a directory for good, in place; how many.

    Raises:
        AssertionError: there is no value that it changes.
    """
    values: Values = {}
    for path in directory.glob("*.kv"):
        with contextlib.suppress(FileNotFoundError):  # evicted meanwhile
            values[str(path).encode()] = path.read_bytes()
    new = {name: value for name, value in change(values).items() if value != values[name]}
    assert new, f"none of the {len(values)} values is changed"
    for name, value in new.items():
        with contextlib.suppress(FileNotFoundError), Path(name.decode()).open("r+b") as file:
            file.truncate(len(value))
            file.write(value)
    return len(new)


@contextmanager
def damaged(store: Store, change: Change) -> Iterator[Values]:
    """Every value of the store's database changed for a while: what they are meanwhile, by key.

    At the end a value is put back where the changed one still is: not where somebody has deleted
    it, nor where somebody has written another. Times to live are kept.

    Raises:
        AssertionError: there is no value that it changes.
    """
    with closing(store.client()) as client:
        values = _values(client)
        new = {key: value for key, value in change(values).items() if value != values[key]}
        assert new, f"none of the store's {len(values)} values is changed"
        _write(client, new)
        try:
            yield new
        finally:
            still = [key for key, value in new.items() if client.get(key) == value]
            _write(client, {key: values[key] for key in still})


def _values(client: redis.Redis) -> Values:
    keys = list(client.scan_iter(count=1000, _type="string"))
    return {key: value for key in keys if (value := client.get(key)) is not None}


def _write(client: redis.Redis, values: Mapping[bytes, bytes]) -> None:
    for key, value in values.items():
        client.set(key, value, keepttl=True)


def _with_bytes(value: bytes, where: slice, mask: int) -> bytes:
    changed = bytes(byte ^ mask for byte in value[where])
    return value[: where.start] + changed + value[where.stop :]
