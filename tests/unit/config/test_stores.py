"""The URL of a store: servers, socket, service, database."""

from __future__ import annotations

import pytest

from kserve_lmcache.config.stores import Disk, RedisLocation, Remote


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("redis://cache", RedisLocation((("cache", 6379),))),
        ("rediss://cache:7000/3", RedisLocation((("cache", 7000),), database=3)),
        ("valkey://[fd00::1]:7000?db=4", RedisLocation((("fd00::1", 7000),), database=4)),
        ("unix:///run/a%20b.sock?db=2", RedisLocation(socket_path="/run/a b.sock", database=2)),
        ("redis-cluster://a:1,b", RedisLocation((("a", 1), ("b", 6379)))),
        (
            "redis-sentinel://a,b:1/service?db=5",
            RedisLocation((("a", 26379), ("b", 1)), service="service", database=5),
        ),
        (
            "redis-sentinel://a/service/6",
            RedisLocation((("a", 26379),), service="service", database=6),
        ),
    ],
)
def test_where_a_url_points(url: str, location: RedisLocation) -> None:
    assert Remote(url, "the test").redis_location() == location


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("redis:///0", "names no host"),
        ("redis-cluster://a,,b", "names no host"),
        ("redis://a:b", "names a port that is no number up to 65535"),
        ("redis://a:70000", "names a port that is no number up to 65535"),
        ("redis://a/b", "names a database that is not a number"),
        ("redis-sentinel://a", "names no service, as redis-sentinel://HOST:PORT/SERVICE does"),
        ("unix://", "names no socket, as unix:///run/redis.sock does"),
    ],
)
def test_a_url_that_cannot_be_used(url: str, what: str) -> None:
    with pytest.raises(ValueError, match=r".*") as error:
        Remote(url, "the test").redis_location()
    assert str(error.value) == what


def test_workers_are_spread_over_the_disks() -> None:
    disk = Disk(("/a", "/b"), 1)
    assert [disk.directory_of(worker) for worker in range(3)] == ["/a", "/b", "/a"]
