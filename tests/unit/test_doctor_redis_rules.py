"""What the doctor makes of what a server says, and how it reads a URL."""

from __future__ import annotations

import pytest

from kserve_lmcache.config.stores import RedisLocation, Remote, parse_addresses
from kserve_lmcache.doctor import redis_memory, redis_store
from kserve_lmcache.doctor.check import Status, failure, ok
from kserve_lmcache.tiers.redis import client as redis_client

MIB = 2**20


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
        ("redis://a:b", "names no number as the port of a"),
        ("redis://a:70000", "names no number as the port of a"),
        ("redis://a/b", "names the database 'b', which is not a number"),
        ("redis-sentinel://a", "names no service, as redis-sentinel://HOST:PORT/SERVICE does"),
        ("unix://", "names no socket, as unix:///run/redis.sock does"),
    ],
)
def test_a_url_that_cannot_be_used(url: str, what: str) -> None:
    with pytest.raises(ValueError, match=r".*") as error:
        Remote(url, "the test").redis_location()
    assert str(error.value) == what


def test_a_port_that_must_be_named() -> None:
    assert parse_addresses("a:1", None) == (("a", 1),)
    with pytest.raises(ValueError, match="names no port for a"):
        parse_addresses("a")


def test_a_client_is_told_everything() -> None:
    remote = Remote(
        "rediss://cache:7000/3", "the test", "user", "password", "ca.pem", "own.pem", "own.key"
    )
    client = redis_client.connect(remote, 1.5)
    told = client.connection_pool.connection_kwargs
    wanted = {
        "host": "cache",
        "port": 7000,
        "db": 3,
        "username": "user",
        "password": "password",
        "socket_timeout": 1.5,
        "socket_connect_timeout": 1.5,
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": True,
        "ssl_ca_certs": "ca.pem",
        "ssl_certfile": "own.pem",
        "ssl_keyfile": "own.key",
        "protocol": 2,
    }
    assert {name: told[name] for name in wanted} == wanted
    assert told["ssl_min_version"].name == "TLSv1_2"
    assert told["retry"].get_retries() == 0


def test_a_client_of_a_plain_server_does_not_encrypt() -> None:
    client = redis_client.connect(Remote("redis://cache", "the test"), 1)
    assert "ssl_cert_reqs" not in client.connection_pool.connection_kwargs


@pytest.mark.parametrize(
    ("used", "maximum", "policy", "status", "evidence"),
    [
        (1, 8, "allkeys-lru", Status.OK, "1.0 MiB of 8.0 MiB used, allkeys-lru"),
        (8, 8, "allkeys-lfu", Status.OK, "8.0 MiB of 8.0 MiB used, allkeys-lfu"),
        (
            7,
            8,
            "noeviction",
            Status.WARNING,
            "7.0 MiB of 8.0 MiB used, noeviction fills up, and then refuses every write",
        ),
        (
            8,
            8,
            "noeviction",
            Status.FAILURE,
            "full: 8.0 MiB of 8.0 MiB used, noeviction refuses every write",
        ),
        (
            1,
            8,
            "volatile-ttl",
            Status.WARNING,
            "1.0 MiB of 8.0 MiB used, volatile-ttl evicts only what has an expiry time",
        ),
        (
            1,
            0,
            "noeviction",
            Status.WARNING,
            "no limit (maxmemory 0), 1.0 MiB used: it grows until the system kills it",
        ),
    ],
)
def test_the_limit_on_memory(
    used: int, maximum: int, policy: str, status: Status, evidence: str
) -> None:
    finding = redis_memory.limit(
        {"used_memory": used * MIB, "maxmemory": maximum * MIB, "maxmemory_policy": policy}
    )
    assert (finding.status, finding.evidence) == (status, evidence)
    assert ("allkeys-lru or allkeys-lfu" in finding.fix) == (status is not Status.OK)


def test_a_server_that_hides_its_limit() -> None:
    finding = redis_memory.limit({"used_memory": 1})
    assert (finding.status, finding.evidence) == (
        Status.SKIPPED,
        "the server does not show maxmemory",
    )


@pytest.mark.parametrize(
    ("append_only", "points", "status", "evidence"),
    [
        (False, "", Status.OK, "none, as is right for a cache"),
        (
            False,
            None,
            Status.OK,
            "no append-only file; the server does not show its save points",
        ),
        (
            True,
            None,
            Status.WARNING,
            "an append-only file: forks the server, which may double its memory",
        ),
        (
            False,
            "900 1",
            Status.WARNING,
            "snapshots (save 900 1): forks the server, which may double its memory",
        ),
    ],
)
def test_persistence(append_only: bool, points: str | None, status: Status, evidence: str) -> None:
    finding = redis_memory.written(append_only, points)
    assert (finding.status, finding.evidence) == (status, evidence)


def test_of_several_servers_the_worst_is_named() -> None:
    findings = {"a:1": ok("memory", "well"), "b:2": failure("memory", "full", "fix")}
    worst = redis_memory._worst(findings)
    assert (worst.status, worst.evidence, worst.fix) == (Status.FAILURE, "b:2: full", "fix")
    same = {"a:1": ok("memory", "well"), "b:2": ok("memory", "well")}
    assert redis_memory._worst(same).evidence == "well"


@pytest.mark.parametrize(
    ("seconds", "status", "evidence"),
    [
        (0.0042, Status.OK, "0.004 s ahead of this machine's"),
        (-5.0, Status.OK, "5.000 s behind this machine's"),
        (-5.1, Status.WARNING, "5.100 s behind this machine's"),
        (3600, Status.WARNING, "3600.000 s ahead of this machine's"),
    ],
)
def test_the_clocks(seconds: float, status: Status, evidence: str) -> None:
    finding = redis_store.difference(seconds)
    assert (finding.status, finding.evidence) == (status, evidence)
    assert ("time service" in finding.fix) == (status is Status.WARNING)


@pytest.mark.parametrize(
    ("information", "shown"),
    [
        ({"redis_version": "6.2.14"}, "Redis 6.2.14"),
        ({"redis_version": "7.2.4", "valkey_version": "9.1.2"}, "Valkey 9.1.2"),
        ({"redis_version": "7.4.0", "dragonfly_version": "df-v1.30"}, "Dragonfly df-v1.30"),
        ({}, "Redis of an unknown version"),
    ],
)
def test_the_kind_of_server(information: dict[str, object], shown: str) -> None:
    assert redis_store.kind(information) == shown
