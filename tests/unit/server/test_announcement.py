"""The announcement of a server: JSON in a field of a Redis hash."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from kserve_lmcache.server.announcement import Replica, decode

NOW = 1_800_000_000.0
OWN = Replica({"hash_seed": "0", "chunk_size": 256}, "kv1-0", "c" * 64, "here:80")


def test_an_announcement_is_read_as_it_was_written() -> None:
    text = OWN.encode(NOW)
    assert set(json.loads(text)) == {"time", "version", "namespace", "inputs"}
    assert decode(b"here:80", text.encode()) == replace(OWN, content="", seen=NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"time": None},
        {"time": "soon"},
        {"time": float("nan")},
        {"time": 10**400},
        {"inputs": [1]},
        {"inputs": {"a": {"b": 1}}},
        {"inputs": {"a": [1]}},
    ],
)
def test_an_announcement_with_a_wrong_value_is_ignored(changes: dict[str, Any]) -> None:
    record = json.loads(OWN.encode(NOW))
    assert decode(b"a", json.dumps(record).encode()) is not None
    assert decode(b"a", json.dumps({**record, **changes}).encode()) is None


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'"time"'])
def test_a_text_that_is_no_announcement_is_ignored(text: bytes) -> None:
    assert decode(b"a", text) is None
