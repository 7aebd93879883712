"""The codec: a value decodes only if it was encoded for the same key."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_lmcache.identity.namespace import LAYOUT as LAYOUT_VERSION
from kserve_lmcache.tiers.guard import codec
from kserve_lmcache.tiers.guard.codec import (
    CorruptValueError,
    Layout,
    decode_value,
    encode_header,
    header_size,
    strip_padding,
)

LAYOUT = Layout("KV_2LTD", (("bfloat16", (2, 3, 16, 8)),))
PAYLOAD = random.Random(1).randbytes(1536)
KEY = "namespace@1@0@ab@bfloat16"
VALUE = encode_header(KEY, LAYOUT, PAYLOAD) + PAYLOAD


def test_an_encoded_value_is_decoded_without_a_copy() -> None:
    layout, payload = decode_value(KEY, VALUE)
    assert layout == LAYOUT
    assert payload == PAYLOAD
    assert payload.obj is VALUE
    assert len(VALUE) == header_size(LAYOUT) + len(PAYLOAD)
    assert header_size(LAYOUT) % 64 == 0


def test_a_layout_of_several_tensors() -> None:
    layout = Layout("KV_2LTD", (("float8_e4m3fn", (2, 1, 4, 8)), ("float32", (1, 4))))
    assert decode_value("k", encode_header("k", layout, b"12") + b"12")[0] == layout


def test_a_layout_of_too_many_tensors_is_refused() -> None:
    with pytest.raises(ValueError, match="300 tensors is too long"):
        encode_header("k", Layout("KV_2LTD", (("bfloat16", (2, 3, 16, 8)),) * 300), b"")


@given(st.integers(0, 8 * len(VALUE) - 1))
def test_every_flipped_bit_is_found(position: int) -> None:
    changed = bytearray(VALUE)
    changed[position // 8] ^= 1 << position % 8
    with pytest.raises(CorruptValueError):
        decode_value(KEY, changed)


@given(st.binary(max_size=2000) | st.integers(0, len(VALUE) - 1).map(lambda end: VALUE[:end]))
def test_no_other_bytes_are_decoded(value: bytes) -> None:
    with pytest.raises(CorruptValueError):
        decode_value(KEY, value)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("another", VALUE, "header's checksum differs"),
        (KEY, VALUE[:-1] + b"\0", "^the checksum differs"),
        (KEY, VALUE + b"\0", f"{len(VALUE) + 1} bytes instead of {len(VALUE)}"),
        (KEY, VALUE[:4] + b"\3\0" + VALUE[6:], "the version is 3, not 2"),
        (KEY, b"", "0 bytes are less than a header"),
        (KEY, bytes(2000), "does not begin as a chunk"),
    ],
)
def test_the_error_names_the_failed_check(key: str, value: bytes, reason: str) -> None:
    with pytest.raises(CorruptValueError, match=reason):
        decode_value(key, value)


@pytest.mark.parametrize("padding", [b"", bytes(1), bytes(5000)])
def test_padding_is_stripped(padding: bytes) -> None:
    assert strip_padding(memoryview(VALUE + padding)) == VALUE


@given(st.binary(max_size=100) | st.integers(0, len(VALUE)).map(lambda end: VALUE[:end]))
def test_stripping_returns_a_prefix_of_any_bytes(value: bytes) -> None:
    assert value.startswith(bytes(strip_padding(memoryview(value))))


def test_the_bytes_of_a_value_are_those_of_the_version_in_the_keys() -> None:
    """Whoever changes them raises ``LAYOUT``, so that replicas of both kinds may share a store."""
    header = encode_header("key", Layout("BLOCKS", (("uint8", (4,)),)), b"data")
    found = LAYOUT_VERSION, hashlib.sha256(header).hexdigest()[:16]
    assert found == (4, "ba6c12bda08f71b1")


@pytest.mark.parametrize(
    "text", ["", " ", "KV uint8", "KV uint8:axb", "KV uint8:", "\xff\xff", "KV uint8:" + "9" * 5000]
)
def test_a_right_header_that_describes_no_layout_is_corrupt(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(codec, "_describe", lambda layout: text.encode("latin-1"))
    header = encode_header(KEY, LAYOUT, PAYLOAD)
    with pytest.raises(CorruptValueError, match="describes no layout"):
        decode_value(KEY, header + PAYLOAD)
