"""The doctor and the rights of a Redis or Valkey user."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kserve_lmcache.cli import doctor
from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.doctor.check import Status
from kserve_lmcache.identity.tag import EVERYTHING
from kserve_lmcache.tiers.guard.store import Entry
from kserve_lmcache.tiers.redis.store import (
    CLUSTER_COMMANDS,
    COMMANDS,
    STEERING_COMMANDS,
    RedisStore,
)
from tests.packaging.documents import DOCS
from tests.support.doctor import find, look_at, redis_remote
from tests.support.server import MODEL
from tests.support.stores import (
    Store,
    redis_cluster,
    redis_process,
    redis_server,
    valkey_server,
)

PASSWORD = "test-password-7f1c"
LISTED_BY = ("enable_routes=cache", "tenant_remote_quota_size")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with redis_server(tmp_path_factory.mktemp("redis"), password=PASSWORD) as store:
        yield store


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with redis_process(tmp_path_factory.mktemp("plain")) as store:
        yield store


def allow(store: Store, rights: str, keys: str = "~*") -> None:
    """Give the user ``less`` these rights and no others."""
    with store.client() as client:
        client.execute_command(f"ACL SETUSER less reset on >cache-password-9e {keys} {rights}")


def words(commands: tuple[str, ...]) -> str:
    return " ".join(f"+{command}" for command in commands)


def test_users_of_an_acl(healthy: Store) -> None:
    with healthy.client() as client:
        rights = "+ping +getrange +set +strlen +expire +unlink"
        client.execute_command(f"ACL SETUSER cache on >cache-password-9e ~* {rights}")
        client.execute_command("ACL SETUSER other on >cache-password-9e ~other:* +@all")
    remote = redis_remote(healthy, username="cache", password="cache-password-9e")
    findings = look_at(remote)
    assert find(findings, "remote login").evidence == "by password, as user 'cache'"
    server = find(findings, "remote server")
    assert server.status is Status.WARNING
    assert "may not run INFO" in server.evidence
    assert "+info" in server.fix
    for name in ("remote topology", "remote memory", "remote persistence"):
        assert find(findings, name).status is Status.SKIPPED
        assert find(findings, name).evidence == "needs INFO, which is refused"
    assert find(findings, "remote clock").evidence == "user 'cache' may not run TIME"
    assert find(findings, "remote round trip").status is Status.OK
    remote = redis_remote(healthy, username="other", password="cache-password-9e")
    last = find(look_at(remote), "remote round trip")
    assert last.status is Status.FAILURE
    assert "ACL SETUSER … ~*" in last.fix


@pytest.mark.parametrize("missing", COMMANDS)
def test_a_user_without_one_of_the_tiers_commands(healthy: Store, missing: str) -> None:
    """The advice is enough for the doctor and for the tier, and every part of it is needed."""
    with healthy.client() as client:
        rights = " ".join(f"+{command}" for command in COMMANDS if command != missing)
        client.execute_command(f"ACL SETUSER less reset on >cache-password-9e ~* {rights}")
    remote = redis_remote(healthy, username="less", password="cache-password-9e")
    found = find(look_at(remote), "remote round trip")
    if missing == "unlink":
        assert found.status is Status.WARNING
        assert found.fix == "Allow this user to delete: ACL SETUSER … +unlink."
        return
    assert found.status is Status.FAILURE
    assert missing.upper() in found.evidence
    advice = found.fix.partition("…")[2].rstrip(".")
    with healthy.client() as client:
        client.execute_command(f"ACL SETUSER less reset on >cache-password-9e {advice}")
    assert find(look_at(remote), "remote round trip").status is Status.OK


def test_the_tier_sends_no_command_that_is_not_in_the_list(plain: Store) -> None:
    store = RedisStore(redis_remote(plain), TierLimits(), "write", lambda: 100)
    with closing(store), plain.client() as client, client.monitor() as monitor:
        entry = Entry("key", b"header", b"payload")
        store.ping()
        store.write([entry])
        assert store.sizes(["key"]) == [13]
        assert len(list(store.read(["key"]))) == 1
        store.keep(["key"])
        store.delete(["key"])
        store.hold(["key"], 60)
        assert [*store.find("key", EVERYTHING, True)] == []
        assert store.remove(["key"]) == 0
        store.write([Entry("last", b"", b"")])
        sent = set()
        for command in monitor.listen():
            sent.add(command["command"].split()[0].lower())
            if "last" in command["command"]:
                break
    assert sent - {"client", "hello", "select"} == {*COMMANDS, *STEERING_COMMANDS}


@pytest.mark.parametrize("features", [LISTED_BY[:1], LISTED_BY[1:], LISTED_BY])
def test_features_that_list_the_store_need_further_rights(
    healthy: Store, features: tuple[str, ...]
) -> None:
    allow(healthy, words(COMMANDS))
    remote = redis_remote(healthy, username="less", password="cache-password-9e")
    findings = look_at(remote, remote_listed_by=features)
    assert find(findings, "remote round trip").status is Status.OK
    found = find(findings, "remote listing")
    assert found.status is Status.WARNING
    assert found.evidence.startswith(
        f"{' and '.join(features)} cannot list the store: refused: SCAN, TTL ("
    )
    assert found.fix == "Allow this user to list the cache: ACL SETUSER … +scan +ttl."
    with healthy.client() as client:
        client.execute_command(f"ACL SETUSER less {found.fix.partition('…')[2].rstrip('.')}")
    found = find(look_at(remote, remote_listed_by=features), "remote listing")
    assert found.status is Status.OK
    assert found.evidence == f"{' and '.join(features)} can list the store"


@pytest.mark.parametrize("missing", STEERING_COMMANDS)
def test_a_user_without_one_of_the_further_rights(tmp_path: Path, missing: str) -> None:
    with valkey_server(tmp_path, password=PASSWORD) as store:
        allow(store, words((*COMMANDS, *(c for c in STEERING_COMMANDS if c != missing))))
        remote = redis_remote(store, "valkey", username="less", password="cache-password-9e")
        found = find(look_at(remote, remote_listed_by=LISTED_BY), "remote listing")
    assert found.status is Status.WARNING
    assert f"refused: {missing.upper()} (" in found.evidence
    assert found.fix.endswith("+scan +ttl.")


def test_the_advice_of_the_round_trip_has_the_further_rights_where_they_are_needed(
    healthy: Store,
) -> None:
    allow(healthy, "+ping")
    remote = redis_remote(healthy, username="less", password="cache-password-9e")
    assert "scan" not in find(look_at(remote), "remote round trip").fix
    fix = find(look_at(remote, remote_listed_by=LISTED_BY), "remote round trip").fix
    allow(healthy, fix.partition("~*")[2].rstrip("."))
    findings = look_at(remote, remote_listed_by=LISTED_BY)
    for name in ("remote round trip", "remote listing"):
        assert find(findings, name).status is Status.OK


def test_a_configuration_without_these_features_needs_no_further_right(plain: Store) -> None:
    with closing(plain.client()) as client, client.monitor() as monitor:
        findings = look_at(redis_remote(plain))
        client.echo("last")
        sent = set()
        for command in monitor.listen():
            sent.add(command["command"].split()[0].lower())
            if command["command"].startswith("ECHO"):
                break
    assert "remote listing" not in {finding.name for finding in findings}
    assert {"set", "getrange"} <= sent
    assert not sent & set(STEERING_COMMANDS)


@pytest.mark.parametrize(
    ("flags", "feature"),
    [
        ((), None),
        (("--enable-routes=cache",), "enable_routes=cache"),
        (("--tenant-header=X", "--tenant-remote-quota-size=1"), "tenant_remote_quota_size"),
        (("--remote-connector=lmcache",), None),
    ],
)
def test_the_command_looks_at_the_configuration(
    healthy: Store, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], feature: str | None
) -> None:
    allow(healthy, words(COMMANDS))
    monkeypatch.setenv("LMCACHE_REMOTE_URL", healthy.url)
    monkeypatch.setenv("LMCACHE_REMOTE_USERNAME", "less")
    monkeypatch.setenv("LMCACHE_REMOTE_PASSWORD", "cache-password-9e")
    text, _ = doctor.run(["--json", f"--model_id={MODEL}", *flags])
    found = {each["name"]: each for each in json.loads(text)["findings"]}
    assert found["configuration"]["status"] == "ok", found["configuration"]
    if feature is None:
        assert "remote listing" not in found
    else:
        assert found["remote listing"]["evidence"].startswith(f"{feature} cannot list the store")


def test_the_rights_of_a_cluster(tmp_path: Path) -> None:
    """The rights of the advice are enough for the tier's listing, of every node."""
    with redis_cluster(tmp_path) as cluster:
        for node in cluster.nodes:
            allow(node, words((*COMMANDS, *STEERING_COMMANDS, *CLUSTER_COMMANDS)))
        remote = redis_remote(cluster.url, username="less", password="cache-password-9e")
        findings = look_at(remote, remote_listed_by=LISTED_BY)
        assert find(findings, "remote round trip").status is Status.OK
        assert find(findings, "remote listing").status is Status.OK
        with closing(RedisStore(remote, TierLimits(), "write", lambda: 100)) as tier:
            entries = [Entry(f"key{number}", b"header", b"payload") for number in range(20)]
            tier.write(entries)
            listed = [value for page in tier.find("key", EVERYTHING, True) for value in page]
            assert {value.name for value in listed} == {entry.key for entry in entries}
            assert tier.hold([entry.key for entry in entries], 60) == len(entries)


def test_a_user_of_a_cluster_who_may_see_all_but_its_layout(tmp_path: Path) -> None:
    with redis_cluster(tmp_path) as cluster:
        for node in cluster.nodes:
            allow(node, f"{words(COMMANDS)} +info")
        remote = redis_remote(cluster.url, username="less", password="cache-password-9e")
        found = find(look_at(remote), "remote topology")
    assert found.status is Status.FAILURE
    assert found.fix.endswith(f"ACL SETUSER … {words(CLUSTER_COMMANDS)}.")


@pytest.mark.parametrize("missing", ["cluster|slots", "getrange", "ttl"])
def test_a_user_of_a_cluster_without_one_right(tmp_path: Path, missing: str) -> None:
    every = (*COMMANDS, *STEERING_COMMANDS, *CLUSTER_COMMANDS)
    with redis_cluster(tmp_path) as cluster:
        for node in cluster.nodes:
            allow(node, words(tuple(command for command in every if command != missing)))
        remote = redis_remote(cluster.url, username="less", password="cache-password-9e")
        findings = look_at(remote, remote_listed_by=LISTED_BY)
        name = "remote listing" if missing in STEERING_COMMANDS else "remote round trip"
        found = find(findings, name)
        assert found.status in (Status.FAILURE, Status.WARNING)
        assert f"+{missing}" in found.fix
        advice = found.fix.partition("…")[2].rstrip(".")
        for node in cluster.nodes:
            with node.client() as client:
                client.execute_command(f"ACL SETUSER less {advice}")
        findings = look_at(remote, remote_listed_by=LISTED_BY)
    for name in ("remote round trip", "remote listing"):
        assert find(findings, name).status is Status.OK


def test_the_documents_list_these_rights() -> None:
    text = (DOCS / "operators" / "stores.md").read_text()
    listed = [
        {word.removeprefix("+") for word in line.split() if word.startswith("+")}
        for line in text.splitlines()
        if line.startswith("+") and "~kserve-lmcache:replicas" not in line
    ]
    assert listed == [set(COMMANDS), set(STEERING_COMMANDS), set(CLUSTER_COMMANDS)]
    assert words(STEERING_COMMANDS) in (DOCS / "operators" / "cache.md").read_text()
