"""Reads of several values over one connection, from a real Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import redis

from kserve_lmcache.config.stores import Remote
from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.tiers.guard.store import PIECE, Entry, StoreError, ValueStream
from kserve_lmcache.tiers.redis.client import KEY_PREFIX
from kserve_lmcache.tiers.redis.store import RedisStore
from tests.support.stores import Store, redis_process
from tests.support.tiers import read

KEYS = ("a", "b", "c", "d", "e", "f")
SIZE = 100_000
LIMITS = TierLimits(batch_bytes=4 * SIZE)  # four values are asked for at a time


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with redis_process(tmp_path_factory.mktemp("redis")) as store:
        yield store


@contextmanager
def reading(server: Store, largest: Callable[[], int] = lambda: SIZE) -> Iterator[RedisStore]:
    """A client of a server that has a value for each key: the key, again and again."""
    store = RedisStore(Remote(server.url, "test"), LIMITS, "load", largest)
    store.write([Entry(key, b"", key.encode() * largest()) for key in KEYS])
    yield store
    store.close()


def values(store: RedisStore, *keys: str) -> list[bytes]:
    return [value or b"" for value in read(store, keys or KEYS)]


def begin(came: Iterator[ValueStream | None]) -> bytes:
    value = next(came)
    assert value is not None
    return bytes(next(value.pieces)[:1])


def test_values_may_become_larger(server: Store) -> None:
    """A cache server learns what its engines keep."""
    size = SIZE
    with reading(server, lambda: size) as store:
        assert values(store) == [key.encode() * SIZE for key in KEYS]
        for size in (3 * SIZE, SIZE // 2):
            store.write([Entry(key, b"", key.encode() * size) for key in KEYS])
            assert values(store) == [key.encode() * size for key in KEYS]


def test_a_value_of_another_kind_ends_one_load_alone(server: Store) -> None:
    with reading(server) as store, redis.Redis.from_url(server.url) as client:
        client.delete(KEY_PREFIX + "c")
        client.rpush(KEY_PREFIX + "c", "an item")
        came = store.read(KEYS)
        assert [begin(came), begin(came)] == [b"a", b"b"]
        with pytest.raises(StoreError, match="WRONGTYPE"):
            next(came)
        assert [value[:1] for value in values(store, "d", "e")] == [b"d", b"e"]
        client.delete(KEY_PREFIX + "c")
        assert [value[:1] for value in values(store)] == [b"a", b"b", b"", b"d", b"e", b"f"]


def test_a_load_that_is_cut_reads_nothing_more(server: Store) -> None:
    """The connection would connect again by itself, and answer the next question instead."""
    with reading(server) as store:
        came = store.read(KEYS)
        assert begin(came) == b"a"
        store.abort()
        with pytest.raises(StoreError):
            next(came)
        assert [value[:1] for value in values(store)] == [key.encode() for key in KEYS]


def test_a_load_that_ends_early_leaves_no_answers_behind(server: Store) -> None:
    with reading(server) as store:
        came = store.read(KEYS)
        next(came)
        came.close()  # type: ignore[attr-defined]
        assert [value[:1] for value in values(store, "f", "e")] == [b"f", b"e"]


def test_a_value_that_is_not_read_to_its_end_is_read_before_the_next(server: Store) -> None:
    with reading(server, lambda: 3 * PIECE) as store:
        came = store.read(KEYS)
        assert [begin(came) for _ in KEYS] == [key.encode() for key in KEYS]
        assert next(came, None) is None
        assert [value[:1] for value in values(store)] == [key.encode() for key in KEYS]


def test_a_connection_that_breaks_within_a_value_is_the_stores_error(server: Store) -> None:
    with reading(server, lambda: 100 * PIECE) as store:
        came = store.read(KEYS)
        value = next(came)
        assert value is not None
        assert bytes(next(value.pieces)[:1]) == b"a"
        store.abort()
        with pytest.raises(StoreError):
            value.whole()
