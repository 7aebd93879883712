"""The judgements of a Redis server's answers."""

from __future__ import annotations

import pytest

from kserve_lmcache.doctor import redis_server
from kserve_lmcache.doctor.check import Status

MIB = 2**20


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
    finding = redis_server.judge_memory(
        {"used_memory": used * MIB, "maxmemory": maximum * MIB, "maxmemory_policy": policy}
    )
    assert (finding.status, finding.evidence) == (status, evidence)
    assert ("allkeys-lru or allkeys-lfu" in finding.fix) == (status is not Status.OK)


def test_a_server_that_hides_its_limit() -> None:
    finding = redis_server.judge_memory({"used_memory": 1})
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
    finding = redis_server.judge_persistence({"aof_enabled": int(append_only)}, points)
    assert (finding.status, finding.evidence) == (status, evidence)


def test_of_several_servers_the_worst_is_named() -> None:
    full, half = {"maxmemory": MIB, "used_memory": MIB}, {"maxmemory": MIB, "used_memory": MIB // 2}
    servers = {"a:1": half, "b:2": {**full, "maxmemory_policy": "noeviction"}}
    worst = redis_server.worst_of(servers, redis_server.judge_memory)
    assert worst.status is Status.FAILURE
    assert worst.evidence.startswith("b:2: full: ")
    alike = redis_server.worst_of({"a:1": half, "b:2": half}, redis_server.judge_memory)
    assert alike.evidence.startswith("512.0 KiB of 1.0 MiB used")


def test_without_info_nothing_is_judged() -> None:
    finding = redis_server.worst_of({}, redis_server.judge_memory)
    assert (finding.status, finding.evidence) == (Status.SKIPPED, "needs INFO, which is refused")


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
    finding = redis_server.judge_clock(seconds)
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
    assert redis_server.kind(information) == shown
