"""The doctor before real Redis and Valkey servers, in health and in every common ailment."""

from __future__ import annotations

import http.server
import re
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kserve_lmcache.doctor import report
from kserve_lmcache.doctor.check import Finding, Status
from kserve_lmcache.doctor.redis_server import kind
from tests.support.doctor import (
    STORE_CHECKS,
    find,
    look_at,
    redis_remote,
    statuses,
    unchecked_after,
)
from tests.support.ports import free_port
from tests.support.proxy import proxy_before
from tests.support.stores import (
    Store,
    redis_process,
    redis_server,
    sentinel,
    silent_server,
    valkey_server,
)
from tests.support.waiting import until

PASSWORD = "test-password-7f1c"

LIMITED = ("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    directory = tmp_path_factory.mktemp("redis")
    with redis_server(directory, *LIMITED, password=PASSWORD) as store:
        yield store


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Without a password and without a limit."""
    with redis_process(tmp_path_factory.mktemp("plain")) as store:
        yield store


def test_a_healthy_redis(healthy: Store) -> None:
    start = time.monotonic()
    findings = look_at(redis_remote(healthy))
    assert time.monotonic() - start < 3
    assert statuses(findings) == dict.fromkeys(STORE_CHECKS, Status.OK)
    assert all(finding.fix == "" for finding in findings)
    assert find(findings, "remote connection").evidence == f"{healthy.host}:{healthy.port}"
    assert find(findings, "remote login").evidence == "by password, as the default user"
    with healthy.client() as client:
        assert find(findings, "remote server").evidence == kind(client.info())
        assert client.dbsize() == 0, "the value of the round trip is still there"
    assert find(findings, "remote topology").evidence == "one node"
    assert re.fullmatch(
        r"[\d.]+ [KM]iB of 64\.0 MiB used, allkeys-lru", find(findings, "remote memory").evidence
    )
    assert re.fullmatch(
        r"1\.0 MiB written at [1-9]\d* MB/s, read at [1-9]\d* MB/s",
        find(findings, "remote round trip").evidence,
    )
    assert float(find(findings, "remote clock").evidence.split(" s ")[0]) < 1
    assert report.exit_code(findings) == 0


def test_a_healthy_valkey(tmp_path: Path) -> None:
    with valkey_server(tmp_path, *LIMITED, password=PASSWORD) as store:
        findings = look_at(redis_remote(store, scheme="valkey"))
    assert statuses(findings) == dict.fromkeys(STORE_CHECKS, Status.OK)
    assert find(findings, "remote server").evidence.startswith("Valkey 9.")


def test_a_store_whose_way_opens_late(tmp_path: Path) -> None:
    with redis_process(tmp_path) as late:
        late.kill()
        assert find(look_at(redis_remote(late)), "remote connection").status is Status.FAILURE
        opener = threading.Timer(1.5, late.start)
        opener.start()
        findings = look_at(redis_remote(late), patient=True)
        opener.join()
    assert "tries in" in find(findings, "remote connection").evidence
    assert find(findings, "remote round trip").status is Status.OK


def test_a_store_that_never_answers_is_told_within_the_time(tmp_path: Path) -> None:
    start = time.monotonic()
    remote = redis_remote(f"redis://127.0.0.1:{free_port()}")
    findings = look_at(remote, timeout=4, patient=True)
    assert 2 < time.monotonic() - start < 4
    assert "refuses the connection" in find(findings, "remote connection").evidence
    unchecked_after(findings, "remote connection")


def test_a_wrong_password(healthy: Store) -> None:
    findings = look_at(redis_remote(healthy, password="another-password-2b"))
    login = find(findings, "remote login")
    assert login.status is Status.FAILURE
    assert "refuses the default user with this password" in login.evidence
    assert "Correct the password" in login.fix
    unchecked_after(findings, "remote login")
    assert "another-password-2b" not in report.table(findings, colour=False)
    assert report.exit_code(findings) == 1


def test_a_missing_password(healthy: Store) -> None:
    login = find(look_at(redis_remote(healthy, password=None)), "remote login")
    assert login.status is Status.FAILURE
    assert login.evidence == (
        f"{healthy.host}:{healthy.port} asks for a password, and none is given"
    )
    assert "LMCACHE_REMOTE_PASSWORD" in login.fix


def test_a_password_where_none_is_wanted(plain: Store) -> None:
    login = find(look_at(redis_remote(plain, password=PASSWORD)), "remote login")
    assert login.status is Status.FAILURE
    assert "has no password, and one is given" in login.evidence
    assert "Leave the password out" in login.fix


def test_no_limit_on_memory(plain: Store) -> None:
    findings = look_at(redis_remote(plain))
    memory = find(findings, "remote memory")
    assert memory.status is Status.WARNING
    assert "no limit (maxmemory 0)" in memory.evidence
    assert "Set maxmemory on the server" in memory.fix
    assert find(findings, "remote round trip").status is Status.OK
    assert report.exit_code(findings) == 0


def fill(store: Store, policy: str) -> None:
    """Leave no room in a server."""
    with store.client() as client:
        client.set("fill", bytes(6 * 2**20))
        client.config_set("maxmemory-policy", policy)
        client.config_set("maxmemory", 5 * 2**20)


def test_a_limit_without_eviction(tmp_path: Path) -> None:
    with redis_process(tmp_path, "--maxmemory", "8mb", "--maxmemory-policy", "noeviction") as store:
        findings = look_at(redis_remote(store))
    memory = find(findings, "remote memory")
    assert memory.status is Status.WARNING
    assert "noeviction fills up, and then refuses every write" in memory.evidence
    assert memory.fix == "Set maxmemory-policy to allkeys-lru or allkeys-lfu on the server."
    assert find(findings, "remote round trip").status is Status.OK


def test_a_server_that_is_full(tmp_path: Path) -> None:
    with redis_process(tmp_path) as store:
        fill(store, "noeviction")
        findings = look_at(redis_remote(store))
    memory = find(findings, "remote memory")
    assert memory.status is Status.FAILURE
    assert memory.evidence.startswith("full: ")
    assert memory.fix == "Set maxmemory-policy to allkeys-lru or allkeys-lfu on the server."
    assert find(findings, "remote round trip").evidence == "needs remote memory"


def test_full_of_values_that_never_expire(tmp_path: Path) -> None:
    with redis_process(tmp_path) as store:
        fill(store, "volatile-lru")
        findings = look_at(redis_remote(store))
    memory = find(findings, "remote memory")
    assert memory.status is Status.WARNING
    assert "volatile-lru evicts only what has an expiry time" in memory.evidence
    last = find(findings, "remote round trip")
    assert last.status is Status.FAILURE
    assert last.evidence == "1.0 MiB could not be written: the server is full"
    assert last.fix.startswith("Raise maxmemory")


def test_a_value_that_does_not_stay(plain: Store) -> None:
    def late(data: bytes) -> bytes:
        time.sleep(0.05)  # the time to delete the value before the next command
        return data

    def evict() -> None:
        with closing(plain.client()) as client, client.pubsub() as events:
            events.psubscribe("__keyevent@0__:set")
            subscribed.set()
            for event in events.listen():
                if event["type"] == "pmessage":
                    client.delete(event["data"])
                    return

    subscribed = threading.Event()
    with closing(plain.client()) as client:
        client.config_set("notify-keyspace-events", "E$")
    thread = threading.Thread(target=evict)
    thread.start()
    assert subscribed.wait(5)
    with proxy_before(plain.host, plain.port, change=late) as port:
        last = find(look_at(redis_remote(plain, port=port)), "remote round trip")
    thread.join(5)
    assert last.status is Status.FAILURE
    assert last.evidence == "a value of 1.0 MiB was gone when it was read back"
    assert "Raise maxmemory" in last.fix


def test_a_value_that_comes_back_changed(plain: Store) -> None:
    def damage(data: bytes) -> bytes:
        return data[:1000] + bytes([data[1000] ^ 1]) + data[1001:] if len(data) > 20000 else data

    with proxy_before(plain.host, plain.port, change=damage) as port:
        last = find(look_at(redis_remote(plain, port=port)), "remote round trip")
    assert last.status is Status.FAILURE
    assert last.evidence == "a value of 1.0 MiB came back changed: the checksum differs"
    assert "Do not use this server" in last.fix


def test_persistence(tmp_path: Path) -> None:
    with redis_process(tmp_path, "--save", "900", "1", "--appendonly", "yes") as store:
        persistence = find(look_at(redis_remote(store)), "remote persistence")
    assert persistence.status is Status.WARNING
    assert persistence.evidence.startswith("an append-only file and snapshots (save 900 1)")
    assert "appendonly no" in persistence.fix


def test_a_refused_connection() -> None:
    port = free_port()
    findings = look_at(redis_remote(f"redis://127.0.0.1:{port}", password=PASSWORD))
    connection = find(findings, "remote connection")
    assert connection.status is Status.FAILURE
    assert connection.evidence == f"127.0.0.1:{port} refuses the connection"
    assert connection.fix.startswith(
        "Start the server, or correct the port in remote_url (the test)"
    )
    unchecked_after(findings, "remote connection")


def test_a_name_that_does_not_resolve() -> None:
    findings = look_at(redis_remote("redis://cache.invalid:6379"))
    name = find(findings, "remote name")
    assert name.status is Status.FAILURE
    assert name.evidence.startswith("cache.invalid cannot be resolved (")
    assert "Correct the host in remote_url (the test)" in name.fix
    unchecked_after(findings, "remote name")


def test_a_name_that_resolves(plain: Store) -> None:
    findings = look_at(redis_remote(f"redis://localhost:{plain.port}"))
    assert re.match(r"localhost is .*127\.0\.0\.1", find(findings, "remote name").evidence)
    assert find(findings, "remote connection").evidence == f"127.0.0.1:{plain.port}"


def test_a_server_that_never_answers() -> None:
    start = time.monotonic()
    with silent_server() as (host, port):
        findings = look_at(redis_remote(f"redis://{host}:{port}"), timeout=2)
    assert time.monotonic() - start < 2.5
    login = find(findings, "remote login")
    assert login.status is Status.FAILURE
    assert login.evidence == (f"{host}:{port} accepts connections and does not answer within 0.6 s")
    assert "Find out why the server hangs" in login.fix
    unchecked_after(findings, "remote login")


def test_a_server_that_answers_but_does_not_store(tmp_path: Path) -> None:
    with redis_process(tmp_path) as store, store.client() as client:
        client.execute_command("CLIENT PAUSE 3000 WRITE")
        start = time.monotonic()
        findings = look_at(redis_remote(store), timeout=2)
        assert time.monotonic() - start < 2.5
    assert find(findings, "remote memory").status is Status.WARNING
    last = find(findings, "remote round trip")
    assert last.status is Status.FAILURE
    assert last.evidence == "1.0 MiB could not be written and read within 1.2 s each"


def test_a_replica(tmp_path: Path, plain: Store) -> None:
    primary = (plain.host, str(plain.port))
    with redis_process(tmp_path, "--replicaof", *primary) as replica:
        findings = look_at(redis_remote(replica))
        topology = find(findings, "remote topology")
        assert topology.status is Status.FAILURE
        address = f"{plain.host}:{plain.port}"
        assert topology.evidence == f"a read-only replica of {address}: nothing can be stored"
        assert f"Use the address of the primary, {address}," in topology.fix
        assert find(findings, "remote round trip").evidence == "needs remote topology"
        with replica.client() as client:
            client.config_set("replica-read-only", "no")
        topology = find(look_at(redis_remote(replica)), "remote topology")
        assert topology.status is Status.WARNING
        assert "overwrites what is stored here" in topology.evidence


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    with redis_process(tmp_path, "--unixsocket", str(path), *LIMITED, password=PASSWORD):
        findings = look_at(redis_remote(f"unix://{path}?db=2", password=PASSWORD))
    without_name = [name for name in STORE_CHECKS if name != "remote name"]
    assert statuses(findings) == dict.fromkeys(without_name, Status.OK)
    assert find(findings, "remote connection").evidence == str(path)
    connection = find(look_at(redis_remote(f"unix://{path}")), "remote connection")
    assert connection.status is Status.FAILURE
    assert connection.evidence == f"{path}: No such file or directory"
    assert "mount its socket here" in connection.fix


def test_a_database_that_the_server_does_not_have(plain: Store) -> None:
    login = find(look_at(redis_remote(f"{plain.url}/99")), "remote login")
    assert login.status is Status.FAILURE
    assert "DB index is out of range" in login.evidence
    assert "Use a database that the server has" in login.fix


def test_a_url_that_cannot_be_used() -> None:
    (address,) = look_at(redis_remote("redis://host:six/0"))
    assert address.name == "remote address"
    assert address.status is Status.FAILURE
    assert address.evidence == "remote_url names a port that is no number up to 65535"
    assert address.fix == "Correct the port. remote_url is set by the test."


def test_another_service_on_the_port() -> None:
    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        remote = redis_remote(f"redis://127.0.0.1:{server.server_port}", password=PASSWORD)
        login = find(look_at(remote, timeout=3), "remote login")
        server.shutdown()
    assert login.status is Status.FAILURE
    assert login.evidence.startswith(
        f"127.0.0.1:{server.server_port} does not answer as Redis does: "
    )
    assert "another service listens there (the test)" in login.fix


def test_a_server_that_repeats_the_password() -> None:
    """Servers quote a command that they do not know, AUTH included."""

    class Parrot(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while command := self.request.recv(1024):
                words = " ".join(command.decode().split())
                self.request.sendall(f"-ERR unknown command with args: {words}\r\n".encode())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Parrot) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"redis://127.0.0.1:{server.server_address[1]}"
        login = find(look_at(redis_remote(url, password=PASSWORD)), "remote login")
        server.shutdown()
    assert login.status is Status.FAILURE
    assert re.search(r"says: .* AUTH .*\*\*\*", login.evidence)
    assert login.fix == "Look at the configuration and the log of the server."


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A cluster of one node, which has no slots yet."""
    directory = tmp_path_factory.mktemp("cluster")
    with redis_process(directory, "--cluster-enabled", "yes", *LIMITED) as store:
        yield store


def test_a_cluster_without_slots(cluster: Store) -> None:
    topology = _topology(cluster, "redis-cluster")
    assert topology.status is Status.FAILURE
    assert topology.evidence == "the cluster is down: 0 of 16384 slots have a node"
    assert "give every slot a node" in topology.fix


def test_a_cluster(cluster: Store) -> None:
    with cluster.client() as client:
        client.execute_command("CLUSTER ADDSLOTS", *range(16384))
        until(lambda: client.cluster("INFO")["cluster_state"] == "ok")
    topology = _topology(cluster, "redis")
    assert topology.status is Status.FAILURE
    assert topology.evidence.startswith(f"{cluster.host}:{cluster.port} is part of a cluster")
    assert f"redis-cluster://{cluster.host}:{cluster.port}" in topology.fix
    findings = look_at(redis_remote(cluster, scheme="redis-cluster"))
    assert statuses(findings) == dict.fromkeys(STORE_CHECKS, Status.OK)
    assert find(findings, "remote topology").evidence == "a cluster of 1 primary"


def test_one_node_taken_for_a_cluster(plain: Store) -> None:
    topology = _topology(plain, "redis-cluster")
    assert topology.status is Status.FAILURE
    assert topology.evidence.endswith("is one node, not part of a cluster")
    assert f"Write {plain.url} in remote_url" in topology.fix


def _topology(store: Store, scheme: str) -> Finding:
    return find(look_at(redis_remote(store, scheme=scheme)), "remote topology")


def test_sentinels(tmp_path: Path, plain: Store) -> None:
    with sentinel(tmp_path, "cache", plain) as watcher:
        url = f"redis-sentinel://127.0.0.1:{free_port()},{watcher.host}:{watcher.port}"
        findings = look_at(redis_remote(f"{url}/cache"))
        assert find(findings, "remote connection").status is Status.WARNING
        primary = f"{plain.host}:{plain.port}"
        assert find(findings, "remote sentinel").evidence == f"the primary of cache is {primary}"
        assert find(findings, "remote round trip").status is Status.OK
        unknown = find(look_at(redis_remote(f"{url}/other")), "remote sentinel")
        assert unknown.status is Status.FAILURE
        assert unknown.evidence.endswith("knows no service 'other', but cache")
        assert "Correct the sentinels or the service" in unknown.fix
        topology = _topology(watcher, "redis")
        assert topology.status is Status.FAILURE
        assert topology.evidence.endswith("is a sentinel, which stores nothing")
        assert f"cache is at {primary}" in topology.fix
    wrong = find(look_at(redis_remote(f"redis-sentinel://{primary}/cache")), "remote sentinel")
    assert wrong.status is Status.FAILURE
    assert f"{primary} is no sentinel" in wrong.evidence


def test_sentinels_with_a_password_of_their_own(tmp_path: Path, healthy: Store) -> None:
    mounted, own = tmp_path / "password", "sentinel-password-3b"
    with sentinel(tmp_path, "cache", healthy, password=own) as watcher:
        url = f"redis-sentinel://{watcher.host}:{watcher.port}/cache"

        def found(**fields: str) -> list[Finding]:
            return look_at(redis_remote(url, password=PASSWORD, **fields))

        missing = find(found(), "remote sentinel")
        assert missing.status is Status.FAILURE
        assert missing.evidence.endswith("asks for a password of its own")
        assert "LMCACHE_REMOTE_SENTINEL_PASSWORD" in missing.fix
        wrong = find(found(sentinel_password="other-password-1"), "remote sentinel")
        assert "refuses remote_sentinel_password" in wrong.evidence
        mounted.write_text(f"{own}\n")
        for fields in (
            {"sentinel_password": own},
            {"sentinel_password": own, "sentinel_password_file": str(mounted)},
        ):
            findings = found(**fields)
            assert find(findings, "remote sentinel").status is Status.OK
            assert find(findings, "remote round trip").status is Status.OK
