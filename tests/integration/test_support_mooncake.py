"""The Mooncake store starts, and keeps what one client gives for another."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from tests.support.stores.mooncake import client, mooncake_store


def test_a_mooncake_store(tmp_path: Path) -> None:
    value = bytes(range(256)) * 20_000
    with mooncake_store(tmp_path) as store:
        with closing(client(store)) as first:
            assert first.put("key", value) == 0
        with closing(client(store)) as second:
            assert second.get("key") == value
            assert second.is_exist("another") == 0
