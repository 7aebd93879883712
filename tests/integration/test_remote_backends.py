"""Every kind of store: what one replica stores another loads, to the last bit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kserve_lmcache.config.stores import Remote
from kserve_lmcache.tiers.guard.tier import Tier
from kserve_lmcache.tiers.redis.client import KEY_PREFIX
from tests.support.background import repeating
from tests.support.replica import TOKENS, alike, pages, prompt, replica
from tests.support.stores import (
    VARIANTS,
    Cluster,
    Store,
    Watched,
    lm_store,
    redis_cluster,
    servers,
    watched_by_sentinels,
)
from tests.support.tiers import chunks, load, redis_tier, store_all
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("same_keys")

PASSWORD = "test-password-b2f0"
RECOVERY = 5.0


def remote_of(store: Store | Watched | Cluster) -> Remote:
    files = {
        name: str(path)
        for name in ("ca_file", "cert_file", "key_file")
        if (path := getattr(store, name, None))
    }
    return Remote(
        store.url,
        "test",
        username=getattr(store, "username", None),
        password=store.password,
        **files,
    )


def shared_between_replicas(remote: Remote) -> None:
    with replica(remote) as one:
        one.store(prompt(1), pages(1))
    with replica(remote) as other:
        found, came, target = other.load(prompt(1))
        assert (found, came) == (TOKENS, TOKENS)
        assert alike(target, pages(1))
        # Nothing holds the memory any longer but the local tier, from which it comes now.
        assert other.load(prompt(1))[:2] == (TOKENS, TOKENS)
        assert other.count("loads") == 1


@pytest.mark.parametrize("server", servers())
@pytest.mark.parametrize("variant", VARIANTS)
def test_one_server(tmp_path: Path, server: str, variant: str) -> None:
    with VARIANTS[variant](tmp_path, binary=servers()[server]) as store:
        shared_between_replicas(remote_of(store))


@pytest.mark.parametrize("server", servers())
def test_sentinels(tmp_path: Path, server: str) -> None:
    with watched_by_sentinels(tmp_path, binary=servers()[server], password=PASSWORD) as watched:
        remote = remote_of(watched)
        shared_between_replicas(remote)
        with redis_tier(remote) as tier, traffic(tier) as failures:
            store_all(tier, chunks("before"))
            before = watched.kill_primary()
            watched.wait_for_another(before)
            seconds = until(lambda: load(tier, ["before"]) == [*chunks("before").values()], 30)
            store_all(tier, chunks("after"))
            until(lambda: load(tier, ["after"]) == [*chunks("after").values()])
        assert seconds < RECOVERY
        assert failures == []


@pytest.mark.parametrize("server", servers())
def test_a_cluster(tmp_path: Path, server: str) -> None:
    with redis_cluster(tmp_path, binary=servers()[server], password=PASSWORD) as cluster:
        remote = remote_of(cluster)
        shared_between_replicas(remote)
        values = chunks(*(f"key-{number}" for number in range(30)))
        with redis_tier(remote) as tier, traffic(tier) as failures:
            store_all(tier, values)
            for key in values:
                source = cluster.owner(KEY_PREFIX + key)
                with cluster.moving(KEY_PREFIX + key, cluster.other_than(source)):
                    until(lambda key=key: load(tier, [key]) == [values[key]])
                until(lambda key=key: load(tier, [key]) == [values[key]])
            until(lambda: load(tier, [*values]) == [*values.values()])
        assert failures == []


def test_lmcaches_own_server(tmp_path: Path) -> None:
    with lm_store(tmp_path) as server:
        shared_between_replicas(Remote(server.url, "test"))


def test_a_directory(tmp_path: Path) -> None:
    shared_between_replicas(Remote(f"fs://localhost:0{tmp_path}", "test"))


@contextmanager
def traffic(tier: Tier) -> Iterator[list[str]]:
    """Stores and loads all the while; the list gets what came and was not what was stored."""
    failures: list[str] = []
    numbers = itertools.count()

    def work() -> None:
        number = next(numbers)
        values = chunks(f"traffic-{number}", f"traffic-{number}-more")
        store_all(tier, values, seconds=30)  # a store that fails over takes none for a while
        tier.lookup([*values])
        loaded = load(tier, [*values])
        if loaded != [*values.values()][: len(loaded)]:
            failures.append(f"{number}")

    with repeating(work, pause=0.01):
        yield failures
