"""Every server that the tests rely on starts, answers, and changes as it is told."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import redis

from kserve_lmcache.doctor import other_stores
from tests.support.stores import (
    VARIANTS,
    LmStore,
    Store,
    Watched,
    lm_store,
    node,
    redis_cluster,
    servers,
    watched_by_sentinels,
)

PASSWORD = "test-password-7f1c"
each_server = pytest.mark.parametrize("binary", servers().values(), ids=servers())


@each_server
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_way_into_every_server(tmp_path: Path, binary: str, variant: str) -> None:
    with VARIANTS[variant](tmp_path, binary=binary) as store:
        with closing(store.client()) as client:
            assert client.set("key", b"value")
            assert client.get("key") == b"value"
            assert client.client_info()["db"] == store.database
            assert client.client_info()["user"] == (store.username or "default")
        # The same server is what the URL leads to.
        with closing(by_url(store)) as client:
            assert client.get("key") == b"value"
        if store.password:
            with pytest.raises(redis.AuthenticationError):
                by_url(store, password=None, username=None).ping()
        if store.cert_file:
            without = {"ssl_certfile": None, "ssl_keyfile": None}
            with pytest.raises(redis.ConnectionError):
                by_url(store, **without).ping()
    assert not store.answers()


def by_url(store: Store, **options: object) -> redis.Redis:
    files = {
        "ssl_ca_certs": store.ca_file,
        "ssl_certfile": store.cert_file,
        "ssl_keyfile": store.key_file,
    }
    login = {"username": store.username, "password": store.password}
    return redis.Redis.from_url(
        store.url, **{**login, **(files if store.ca_file else {}), **options}
    )


def test_there_are_redis_and_valkey() -> None:
    kinds = {name.partition("-")[0] for name in servers()}
    assert "valkey" in kinds
    assert all(float(name.partition("-")[2]) >= 6.2 for name in servers())


@each_server
def test_a_server_is_shut_down_and_killed(tmp_path: Path, binary: str) -> None:
    with node(tmp_path, binary=binary, password=PASSWORD) as store:
        store.client().set("key", "value")
        store.shut_down()
        assert not store.answers()
        store.start()
        assert store.client().get("key") == b"value"
        store.kill()
        assert not store.answers()
        store.start()
        assert store.client().get("key") is None


def test_lmcaches_server_is_killed_and_started_again(tmp_path: Path) -> None:
    with lm_store(tmp_path) as store:
        assert asked(store)
        store.kill()
        with pytest.raises(ConnectionRefusedError):
            asked(store)
        store.start()
        assert asked(store)


def asked(store: LmStore) -> bool:
    """Whether it answers a lookup by LMCache's protocol."""
    with socket.create_connection((store.host, store.port), 5) as client:
        client.sendall(other_stores.lookup_request())
        return len(client.recv(100)) == other_stores.ANSWER.size


@each_server
def test_sentinels_replace_the_primary(tmp_path: Path, binary: str) -> None:
    with watched_by_sentinels(tmp_path, binary=binary, password=PASSWORD) as watched:
        first = watched.primary()
        write(watched, "before", replicas=1)
        second = watched.fail_over()
        assert second.port != first.port
        assert write(watched, "meanwhile") == second.port
        assert watched.kill_primary() is second
        assert watched.wait_for_another(second) is first
        assert write(watched, "after") == first.port
        assert first.client().get("before") == b"1"


def write(watched: Watched, key: str, replicas: int = 0) -> int:
    """The port of the server that took it."""
    with closing(watched.client()) as client:
        assert client.set(key, 1)
        assert client.wait(replicas, 5000) >= replicas
        return int(client.info("server")["tcp_port"])


@each_server
def test_a_slot_moves_between_the_nodes_of_a_cluster(tmp_path: Path, binary: str) -> None:
    with redis_cluster(tmp_path, binary=binary, password=PASSWORD) as cluster:
        client = cluster.client()
        values = {f"{{slot}}{number}": str(number).encode() for number in range(250)}
        for key, value in values.items():
            client.set(key, value)
        for number in range(30):
            client.set(f"elsewhere-{number}", "x")
        assert all(len(store.client().keys()) >= 1 for store in cluster.nodes)
        source = cluster.owner("{slot}")
        target = cluster.other_than(source)
        with (
            reading(client, "{slot}7", b"7"),
            cluster.moving("{slot}", target) as moved,
        ):
            assert moved == len(values)
            with pytest.raises(redis.exceptions.AskError):
                source.client().get("{slot}7")
        assert cluster.owner("{slot}") is target
        with pytest.raises(redis.exceptions.MovedError):
            source.client().get("{slot}7")
        assert {key: client.get(key) for key in values} == values
        cluster.wait_until_whole()


@contextmanager
def reading(client: redis.RedisCluster, key: str, value: bytes) -> Iterator[None]:
    """A client that reads all the time meanwhile finds the value each time."""
    found, is_over = [], threading.Event()

    def read() -> None:
        while not is_over.is_set():
            found.append(client.get(key))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
    assert set(found) == {value}
