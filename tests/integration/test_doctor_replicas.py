"""Replicas in a real store: announced, compared, and reported by the real command."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from kserve_lmcache.config.stores import Remote
from kserve_lmcache.doctor import at_start
from kserve_lmcache.doctor.check import Finding, Status
from kserve_lmcache.doctor.context import Context
from kserve_lmcache.identity.fingerprint import fingerprint
from kserve_lmcache.server import announcement
from kserve_lmcache.server.announcement import KEY_PREFIX, Replica, announce, keep_announced
from tests.support import models
from tests.support.commands import run, run_here
from tests.support.doctor import find, look_at, redis_remote
from tests.support.server import MODEL
from tests.support.stores import Store, redis_process, redis_server, sentinel, silent_server
from tests.support.waiting import until

PASSWORD = "test-password-2b8d"
KEYS = {"hash_algorithm": "sha256_cbor", "hash_seed": "0", "chunk_size": 256}
DAY = 24 * 3600
Run = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def content() -> str:
    return fingerprint(MODEL).digest


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with redis_server(tmp_path_factory.mktemp("redis"), password=PASSWORD) as store:
        yield store


@pytest.fixture
def store(running: Store) -> Store:
    """Without any key."""
    with closing(running.client()) as client:
        client.flushall()
    return running


def server(place: str, content: str, **inputs: Any) -> Replica:
    all_inputs = {**KEYS, "dtype": "torch.bfloat16", **inputs}
    return Replica(all_inputs, f"kv1-{json.dumps(all_inputs)}", content, place)


def tell(store: Store, *servers: Replica, ago: float = 0.0) -> None:
    """Announce servers as they announced themselves some seconds ago."""
    with closing(store.client()) as client:
        for each in servers:
            announce(client, each)
            if ago:
                key = f"{KEY_PREFIX}{each.content[:16]}"
                client.hset(key, each.place, each.encode(time.time() - ago))


def fields(store: Store, content: str) -> set[str]:
    with closing(store.client()) as client:
        told: Any = client.hgetall(f"{KEY_PREFIX}{content[:16]}")
    return {place.decode() for place in told}


def command(
    store: Store, *arguments: str, run: Run = run_here, exit_code: int = 0, **variables: str
) -> Finding:
    """What the real command finds."""
    login = {"LMCACHE_REMOTE_URL": store.url, "LMCACHE_REMOTE_PASSWORD": PASSWORD}
    result = run("doctor", "--json", *arguments, **login, **variables)
    assert result.stdout, result.stderr
    assert PASSWORD not in result.stdout
    (found,) = [
        each for each in json.loads(result.stdout)["findings"] if each["name"] == "replicas"
    ]
    assert result.returncode == exit_code, result.stdout
    return Finding(**{**found, "status": Status(found["status"])})


def test_the_command_reports_replicas_of_two_hash_seeds(store: Store, content: str) -> None:
    tell(store, server("pod-a:8080", content), server("pod-b:8080", content, hash_seed="1"))
    tell(store, server("other-model:8080", "0" * 64, hash_seed="2"))
    finding = command(store, f"--model_id={MODEL}", run=run)
    assert finding.status is Status.WARNING
    assert "nothing is shared with pod-b:8080 (" in finding.evidence
    assert finding.evidence.endswith(
        "s ago): hash seed 1 there and 0 here; 1 of 2 differ in nothing that was compared"
    ), finding.evidence
    assert "the same PYTHONHASHSEED, " in finding.fix
    assert finding.seconds < 2, "the model's content was not told from a few of its bytes"
    finding = command(store, f"--model_id={MODEL}", run=run, PYTHONHASHSEED="1")
    assert "nothing is shared with pod-a:8080 (" in finding.evidence
    assert "hash seed 0 there and 1 here" in finding.evidence
    assert fields(store, content) == {"pod-a:8080", "pod-b:8080"}


def test_the_command_counts_replicas_that_agree(store: Store, content: str) -> None:
    tell(store, server("pod-a:8080", content), server("pod-b:8080", content))
    finding = command(store, f"--model_id={MODEL}")
    assert finding.status is Status.OK
    assert finding.evidence.startswith("2 servers of this model in the last 24 h, all alike, ")


def test_the_command_finds_the_same_model_elsewhere(
    store: Store, content: str, tmp_path: Path
) -> None:
    tell(store, server("pod-a:8080", content, chunk_size=512))
    copy = models.copy(tmp_path / "copy")
    finding = command(store, f"--model_dir={copy}", XDG_CACHE_HOME=str(tmp_path))
    assert "chunk size 512 there and 256 here" in finding.evidence
    other = models.changed(tmp_path / "other", ("k_proj",), 1)
    finding = command(store, f"--model_dir={other}", XDG_CACHE_HOME=str(tmp_path))
    assert finding.evidence == "no servers of this model in the last 24 h"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--model_dir=/nowhere",), "no model is given, and those of one model are compared"),
        (
            ("--model_id=organisation/nothing",),
            "organisation/nothing is not on this machine: a server compares when it has fetched it",
        ),
        (
            (f"--model_id={MODEL}", "--model-fingerprint=full"),
            "model_fingerprint is full, which takes long: only a server compares",
        ),
        (
            (f"--model_id={MODEL}", "--model-fingerprint=private"),
            "model_fingerprint is private: nothing is shared",
        ),
    ],
)
def test_the_command_says_why_it_compares_nothing(
    store: Store, arguments: tuple[str, ...], reason: str
) -> None:
    finding = command(store, *arguments)
    assert (finding.status, finding.evidence) == (Status.SKIPPED, reason)


def test_without_a_configuration_nothing_is_compared(store: Store) -> None:
    finding = command(store, f"--model_id={MODEL}", exit_code=1, LMCACHE_CHUNK_SIZE="many")
    assert (finding.status, finding.evidence) == (Status.SKIPPED, "needs configuration")


def test_a_model_without_weights_has_no_replicas(store: Store, tmp_path: Path) -> None:
    own = Replica(KEYS)
    finding = find(look_at(redis_remote(store), replica=own, model=str(tmp_path)), "replicas")
    assert finding.status is Status.SKIPPED
    assert "holds no weights" in finding.evidence


def test_a_server_announces_itself_and_compares(store: Store, content: str) -> None:
    remote = redis_remote(store)
    first, second = server("pod-a:8080", content), server("pod-b:8080", content, hash_seed="1")
    finding = find(look_at(remote, replica=first), "replicas")
    assert (finding.status, finding.evidence) == (
        Status.OK,
        "no other servers of this model in the last 24 h",
    )
    finding = find(look_at(remote, replica=second), "replicas")
    assert finding.status is Status.WARNING
    assert "pod-a:8080" in finding.evidence
    assert "hash seed 0 there and 1 here" in finding.evidence
    # Started once more with another configuration, it is in its own place.
    again = replace(first, inputs=second.inputs, namespace=second.namespace)
    finding = find(look_at(remote, replica=again), "replicas")
    assert finding.status is Status.OK
    assert "1 other server of this model in the last 24 h, all alike: pod-b" in finding.evidence


def test_what_is_announced_is_no_secret_and_expires(store: Store, content: str) -> None:
    own = server("pod-a:8080", content)
    look_at(redis_remote(store), replica=own)
    with closing(store.client()) as client:
        (key,) = client.keys()
        assert key.decode() == f"kserve-lmcache:replicas:{content[:16]}"
        assert DAY < client.ttl(key) <= 2 * DAY
        told = json.loads(client.hget(key, "pod-a:8080"))
    assert set(told) == {"time", "version", "namespace", "inputs"}
    assert told["inputs"] == {**KEYS, "dtype": "torch.bfloat16"}
    assert abs(told["time"] - time.time()) < 60


def test_who_has_not_been_seen_for_a_day_is_ignored_and_deleted(store: Store, content: str) -> None:
    old, recent = (server(f"{name}:80", content, hash_seed="1") for name in ("old", "recent"))
    tell(store, old, ago=DAY + 60)
    tell(store, recent, ago=DAY - 3600)
    finding = command(store, f"--model_id={MODEL}")
    assert "old" not in finding.evidence
    assert "recent:80 (23 h ago)" in finding.evidence
    assert fields(store, content) == {"old:80", "recent:80"}, "a command only looks"
    look_at(redis_remote(store), replica=server("new:80", content))
    assert fields(store, content) == {"new:80", "recent:80"}


def test_a_private_server_is_not_announced(store: Store, content: str) -> None:
    own = server("pod-a:8080", content)
    finding = find(
        look_at(redis_remote(store), replica=own, model_fingerprint="private"), "replicas"
    )
    assert finding.status is Status.SKIPPED
    assert fields(store, content) == set()


@pytest.mark.parametrize(
    ("permissions", "announced", "said"),
    [
        ("~kv1-* ~kserve-lmcache:doctor:* +@all", False, ("cannot be announced", "cannot be seen")),
        ("~* +@all -hset", False, ("this server cannot be announced to others: ",)),
        ("~* +@all -hgetall", True, ("other servers of this model cannot be seen: ",)),
        ("~* +@all -hdel", True, ("servers that have ended cannot be deleted: ",)),
    ],
)
def test_a_user_who_may_not_use_the_key(
    store: Store, content: str, permissions: str, announced: bool, said: tuple[str, ...]
) -> None:
    tell(store, server("old:8080", content), ago=DAY + 60)
    with closing(store.client()) as client:
        client.execute_command(f"ACL SETUSER cache reset on >cache-password-9e {permissions}")
    remote = redis_remote(store, username="cache", password="cache-password-9e")
    findings = look_at(remote, replica=server("pod-a:8080", content))
    finding = find(findings, "replicas")
    assert finding.status is Status.WARNING
    for each in said:
        assert each in finding.evidence
    assert finding.evidence.count("cannot be") == len(said)
    assert "permission" in finding.evidence
    assert finding.fix == (
        "Allow it: ACL SETUSER … ~kserve-lmcache:replicas:* +hset +hgetall +hdel +expire."
    )
    assert not [each for each in findings if each.status is Status.FAILURE]
    assert ("pod-a:8080" in fields(store, content)) == announced


def test_a_user_who_may_only_look_still_hears_of_others(store: Store, content: str) -> None:
    tell(store, server("pod-b:8080", content, hash_seed="1"))
    with closing(store.client()) as client:
        client.execute_command("ACL SETUSER reader on >cache-password-9e ~* +@all -hset")
    remote = redis_remote(store, username="reader", password="cache-password-9e")
    finding = find(look_at(remote, replica=server("pod-a:8080", content)), "replicas")
    assert "this server cannot be announced to others: " in finding.evidence
    assert "nothing is shared with pod-b:8080 (" in finding.evidence
    assert "+hset" in finding.fix
    assert "PYTHONHASHSEED" in finding.fix


def test_a_key_that_is_something_else(store: Store, content: str) -> None:
    with closing(store.client()) as client:
        client.set(f"{KEY_PREFIX}{content[:16]}", "x")
    finding = find(look_at(redis_remote(store), replica=server("a:80", content)), "replicas")
    assert finding.status is Status.WARNING
    assert "WRONGTYPE" in finding.evidence


def test_what_somebody_else_wrote_there_is_shown_as_text(store: Store, content: str) -> None:
    record = json.loads(server("x", content, hash_seed="1\n\x1b[2J").encode(time.time()))
    with closing(store.client()) as client:
        key = f"{KEY_PREFIX}{content[:16]}"
        client.hset(key, "evil\r\n:80", json.dumps(record))
        client.hset(key, "nonsense", b"\xff")
    finding = find(look_at(redis_remote(store), replica=server("a:80", content)), "replicas")
    assert finding.status is Status.WARNING
    assert "evil :80 (" in finding.evidence
    assert "nonsense" not in finding.evidence
    assert finding.evidence.isprintable()


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


Log = tuple[logging.Logger, Records]


@pytest.fixture
def log() -> Iterator[Log]:
    logger, records = logging.getLogger(announcement.__name__), Records()
    logger.addHandler(records)
    before, logger.level = logger.level, logging.DEBUG
    yield logger, records
    logger.level = before
    logger.removeHandler(records)


def test_a_server_stays_announced_while_it_offloads(store: Store, content: str, log: Log) -> None:
    logger, records = log
    offloads = True
    asked = 0

    def still() -> bool:
        nonlocal asked
        asked += 1
        return offloads

    own = server("pod-a:8080", content)
    at_start.log_findings(Context(remote=redis_remote(store), replica=own), logger)
    keep_announced(redis_remote(store), own, still, pause=0.05)
    until(lambda: fields(store, content) == {"pod-a:8080"})
    until(lambda: any("Check replicas: ok" in line for line in records.lines))
    with closing(store.client()) as client:
        client.flushall()  # as a full store evicts it
    until(lambda: fields(store, content) == {"pod-a:8080"})
    offloads = False
    before = asked
    until(lambda: asked > before)
    with closing(store.client()) as client:
        client.flushall()
    time.sleep(0.3)
    assert fields(store, content) == set()
    assert asked == before + 1


def test_a_store_that_is_away_is_tried_again(tmp_path: Path, content: str, log: Log) -> None:
    logger, records = log
    stop = False
    with redis_process(tmp_path) as store:
        context = Context(remote=redis_remote(store), replica=server("pod-a:8080", content))
        at_start.log_findings(context, logger)
        keep_announced(context.remote, context.replica, lambda: not stop, pause=0.05)
        until(lambda: any("Check replicas: ok" in line for line in records.lines))
    until(
        lambda: any(
            "This server is not announced to other servers: " in line for line in records.lines
        )
    )
    stop = True


def test_a_store_that_hangs_delays_nobody(content: str, log: Log) -> None:
    logger, records = log
    with silent_server() as (host, port):
        remote = redis_remote(f"redis://{host}:{port}")
        context = Context(remote=remote, replica=server("pod-a:8080", content))
        start = time.monotonic()
        at_start.log_findings(context, logger, timeout=1.0)
        assert time.monotonic() - start < 0.5
        until(lambda: any("Check replicas: skipped" in line for line in records.lines), 5)
    assert any("needs remote login" in line for line in records.lines)


def test_a_store_that_is_not_redis_has_no_announcements(content: str) -> None:
    own = server("pod-a:8080", content)
    lm = Remote("lm://host:1", "the test")
    assert keep_announced(lm, own, lambda: True) is None
    assert keep_announced(None, own, lambda: True) is None


def slot_of(client: Any, content: str) -> int:
    return int(client.cluster("KEYSLOT", f"{KEY_PREFIX}{content[:16]}"))


def test_a_cluster_keeps_the_hash_on_one_node(tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    cluster = ("--cluster-enabled", "yes")
    with (
        redis_process(tmp_path, *cluster) as first,
        redis_process(tmp_path / "second", *cluster) as second,
        closing(first.client()) as one,
        closing(second.client()) as two,
    ):
        one.execute_command("CLUSTER ADDSLOTS", *range(8192))
        two.execute_command("CLUSTER ADDSLOTS", *range(8192, 16384))
        one.execute_command("CLUSTER MEET", second.host, second.port)
        for client in (one, two):
            until(lambda client=client: client.cluster("INFO")["cluster_state"] == "ok")
        remote = redis_remote(first, scheme="redis-cluster")
        contents = [f"{number:x}" * 64 for number in range(16)]
        places = {slot_of(one, content) < 8192: content for content in contents}
        assert set(places) == {True, False}
        for content in places.values():
            look_at(remote, replica=server("a:80", content, hash_seed="1"))
            finding = find(look_at(remote, replica=server("b:80", content)), "replicas")
            assert finding.status is Status.WARNING
            assert "hash seed 1 there and 0 here" in finding.evidence
            assert "cannot" not in finding.evidence
        assert (one.dbsize(), two.dbsize()) == (1, 1)


def test_sentinels_name_the_primary(content: str, tmp_path: Path) -> None:
    with redis_process(tmp_path) as primary, sentinel(tmp_path, "cache", primary) as watcher:
        remote = redis_remote(f"redis-sentinel://{watcher.host}:{watcher.port}/cache")
        look_at(remote, replica=server("a:80", content))
        assert fields(primary, content) == {"a:80"}
        finding = find(look_at(remote, replica=server("b:80", content)), "replicas")
    assert "1 other server of this model in the last 24 h, all alike" in finding.evidence


def test_a_store_that_is_full(tmp_path: Path, content: str) -> None:
    with redis_process(tmp_path) as store:
        with closing(store.client()) as client:
            client.set("fill", bytes(6 * 2**20))
            client.config_set("maxmemory", 5 * 2**20)
        finding = find(look_at(redis_remote(store), replica=server("a:80", content)), "replicas")
    assert finding.status is Status.WARNING
    assert "this server cannot be announced to others: " in finding.evidence
    assert "maxmemory" in finding.evidence
    assert "sharing itself does not depend on it" in finding.fix


def test_two_that_start_at_once_do_not_miss_each_other(store: Store, content: str) -> None:
    commands: list[str] = []
    with closing(store.client()) as client, client.monitor() as monitor:
        look_at(redis_remote(store), replica=server("a:80", content))
        client.echo("done")
        while "ECHO" not in commands:
            commands.append(monitor.next_command()["command"].split()[0].upper())
    assert commands.index("HSET") < commands.index("HGETALL")
