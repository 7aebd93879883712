"""What a remote store has of this process's chunks, without an engine."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from kserve_lmcache.config.stores import Remote
from kserve_lmcache.tiers.guard import presence
from kserve_lmcache.tiers.guard.presence import Presence
from kserve_lmcache.tiers.guard.tier import Tier
from kserve_lmcache.tiers.redis.client import KEY_PREFIX
from tests.support.stores import Store
from tests.support.tiers import chunks, redis_tier, store_all
from tests.support.waiting import until


@dataclass
class Watched:
    """A tier, and what was told of it."""

    tier: Tier
    told: dict[str, bool]

    def present(self) -> set[str]:
        return {key for key, present in list(self.told.items()) if present}


@pytest.fixture
def watched(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.setattr(presence, "_PASS_SECONDS", 0.05)
    monkeypatch.setattr(presence, "_ASK_SECONDS", 0.2)
    with redis_tier(remote) as tier:
        told: dict[str, bool] = {}

        def tell(key: str, present: bool) -> None:
            assert told.get(key, False) != present, "told twice"
            told[key] = present

        watching = Presence(tier, tell, tier.log_bug)
        yield Watched(tier, told)
        watching.close()


def stored(server: Store) -> set[str]:
    return {key.decode().removeprefix(KEY_PREFIX) for key in server.chunks()}


def test_what_was_written_is_told_and_what_vanishes_by_any_way(
    watched: Watched, server: Store
) -> None:
    names = [f"m@1@0@{number:x}@half" for number in range(200)]
    store_all(watched.tier, chunks(*names))
    until(lambda: watched.present() == set(names))
    client, letters = server.client(), random.Random(1)
    for _ in range(5):
        for key in letters.sample(sorted(server.chunks()), 10):
            client.unlink(key)
        until(lambda: watched.present() == stored(server))
    watched.tier.delete(sorted(watched.present())[0])
    until(lambda: len(stored(server)) == 149)
    until(lambda: watched.present() == stored(server))
    client.flushall()
    until(lambda: not watched.present())
    store_all(watched.tier, chunks(*names[:3]))
    until(lambda: watched.present() == set(names[:3]))


def test_what_another_replica_wrote_is_told_once_it_was_found(
    watched: Watched, remote: Remote
) -> None:
    with redis_tier(remote) as other:
        store_all(other, chunks("m@1@0@a@half"))
    assert not watched.present()
    until(lambda: watched.tier.lookup(["m@1@0@a@half"]) == 1)
    assert watched.present() == {"m@1@0@a@half"}


def test_asking_does_not_keep_a_chunk_alive(watched: Watched, server: Store) -> None:
    store_all(watched.tier, chunks("m@1@0@a@half"))
    until(lambda: bool(watched.present()))
    (key,) = server.chunks()
    server.client().pexpire(key, 1000)
    until(lambda: not watched.present(), 5)
    assert not server.chunks()
