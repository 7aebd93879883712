"""A tier is proven to give back what it was given, and nothing of that is left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.tiers.guard.codec import encode_header
from kserve_lmcache.tiers.guard.proof import WrongValueError
from kserve_lmcache.tiers.guard.store import (
    Entry,
    StoreError,
    StoreFullError,
    ValueStream,
    in_memory,
)
from kserve_lmcache.tiers.guard.tier import Tier
from tests.support.tiers import LAYOUT, SIZE, chunks, disk_tier

PAYLOAD = chunks("proof")["proof"]


class Memory:
    """A store with faults."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.deleted: list[str] = []

    def ping(self) -> None: ...

    def sizes(self, keys: Sequence[str]) -> list[int]:
        return [len(self.values.get(key, b"")) for key in keys]

    def read(self, keys: Sequence[str]) -> Iterator[ValueStream | None]:
        for key in keys:
            yield in_memory(self.values[key]) if key in self.values else None

    def write(self, entries: Sequence[Entry]) -> None:
        self.values.update((entry.key, entry.header + entry.payload) for entry in entries)

    def keep(self, keys: Sequence[str]) -> None: ...

    def delete(self, keys: Sequence[str]) -> None:
        self.deleted += keys
        for key in keys:
            self.values.pop(key, None)

    def abort(self) -> None: ...

    def close(self) -> None: ...


def said(store: Memory) -> str:
    tier = Tier("memory", lambda kind: store, TierLimits(), 16, SIZE)
    try:
        return tier.prove(LAYOUT, PAYLOAD, wait=5)
    finally:
        tier.close()


def test_a_disk_gives_back_what_it_was_given(tmp_path: Path) -> None:
    with disk_tier(tmp_path / "cache") as disk:
        assert disk.tier.prove(LAYOUT, PAYLOAD, wait=0).endswith(" ms")
        assert disk.count("chunks_written") == disk.count("loads") == disk.count("failures") == 0
        assert [path for path in disk.directory.path.rglob("*") if path.stat().st_size] == []


def test_each_proof_has_a_key_of_its_own_and_takes_it_away() -> None:
    store = Memory()
    for _ in range(2):
        assert said(store).endswith(" ms")
    assert store.values == {}
    assert len(set(store.deleted)) == 2
    assert all("@" not in key for key in store.deleted)  # as every key of a request has


def test_one_that_does_not_answer_is_told() -> None:
    class Gone(Memory):
        def ping(self) -> None:
            raise StoreError("nobody there")

    tier = Tier("gone", lambda kind: Gone(), TierLimits(), 16, SIZE)
    assert tier.prove(LAYOUT, PAYLOAD, wait=0.05).startswith("not up (")
    tier.close()


def test_a_call_that_fails_is_told() -> None:
    class Unwritable(Memory):
        def write(self, entries: Sequence[Entry]) -> None:
            raise StoreError("no")

    class Unreadable(Memory):
        def read(self, keys: Sequence[str]) -> Iterator[ValueStream | None]:
            raise StoreError("no")

    class Full(Memory):
        def write(self, entries: Sequence[Entry]) -> None:
            raise StoreFullError("no room")

    class Forgetful(Memory):
        def write(self, entries: Sequence[Entry]) -> None: ...

    assert said(Unwritable()) == "did not answer a write"
    assert said(Unreadable()) == "did not answer a read"
    assert said(Full()) == "full (no room)"
    assert said(Forgetful()) == "forgot a chunk at once"


class Damaging(Memory):
    def write(self, entries: Sequence[Entry]) -> None:
        super().write(entries)
        for key, value in self.values.items():
            self.values[key] = value[:-1] + bytes([value[-1] ^ 1])


class Confusing(Memory):
    """Has another value under the key, whose checksum is right."""

    def write(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            other = bytes(reversed(entry.payload))
            self.values[entry.key] = encode_header(entry.key, LAYOUT, other) + other


@pytest.mark.parametrize("store", [Damaging(), Confusing()], ids=lambda store: type(store).__name__)
def test_other_bytes_are_no_answer_but_a_failure(store: Memory) -> None:
    with pytest.raises(WrongValueError, match="returned other bytes than were stored"):
        said(store)
    assert store.values == {}
