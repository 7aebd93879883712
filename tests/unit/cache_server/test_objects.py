"""An object is what was stored under its name, or it is not used."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from kserve_lmcache.cache_server.messages import Row
from kserve_lmcache.cache_server.objects import fault_of, name_of, payload_begin, seal

PAYLOAD = 96


def sealed(name: str, payload: bytes) -> bytearray:
    begin = payload_begin(len(payload))
    memory = bytearray(begin + len(payload))
    memory[begin:] = payload
    seal(name, memoryview(memory), len(payload))
    return memory


@given(st.binary(min_size=PAYLOAD, max_size=PAYLOAD), st.text(max_size=40))
def test_what_was_sealed_passes(payload: bytes, name: str) -> None:
    name = name.encode("utf-8", "replace").decode()
    memory = sealed(name, payload)
    assert fault_of(name, memoryview(memory)) == ""
    assert bytes(memory[payload_begin(PAYLOAD) :]) == payload


@given(st.binary(min_size=PAYLOAD, max_size=PAYLOAD), st.data())
def test_a_changed_bit_fails(payload: bytes, data: st.DataObject) -> None:
    memory = sealed("name", payload)
    bit = data.draw(st.integers(0, 8 * len(memory) - 1))
    memory[bit // 8] ^= 1 << bit % 8
    assert fault_of("name", memoryview(memory))


def test_what_was_never_written_fails() -> None:
    for memory in (bytes(200), b"\xff" * 200, b"", bytes(range(200))):
        assert fault_of("name", memoryview(memory))


def test_an_object_of_another_name_fails() -> None:
    rows = [
        Row(model, rank, 100, salt)
        for model, rank, salt in itertools.product(("a", "b"), ((0, 1), (0, 2), (1, 2)), ("", "s"))
    ]
    names = [name_of(row, digest) for row in rows for digest in (b"1" * 32, b"2" * 32)]
    assert len(set(names)) == len(names)
    memory = memoryview(sealed(names[0], b"payload"))
    assert [name for name in names if not fault_of(name, memory)] == [names[0]]
