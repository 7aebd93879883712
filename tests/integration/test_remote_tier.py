"""The remote tier against real servers: what is stored comes back, and nothing else does."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from kserve_lmcache.config.stores import Remote
from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.tiers.guard.codec import encode_header
from kserve_lmcache.tiers.redis.client import KEY_PREFIX
from tests.support.damage import RANDOM_CHANGES
from tests.support.stores import Store, redis_process, valkey_server
from tests.support.tiers import LAYOUT, SIZE, chunks, load, make_room, redis_tier, store, store_all
from tests.support.waiting import until

CORRUPTIONS = 10_000


@pytest.fixture
def remote(server: Store) -> Remote:
    client = server.client()
    client.flushall()
    client.config_set("maxmemory", 0)
    return Remote(server.url, "test")


def test_one_tier_loads_what_another_stores(server: Store, remote: Remote) -> None:
    values = chunks(*"abcde")
    with redis_tier(remote) as one, redis_tier(remote) as other:
        store_all(one, values)
        assert other.lookup([*values]) == 5
        assert load(other, [*values]) == [*values.values()]
        assert other.lookup(["a", "x", "b"]) == 1
        assert load(other, ["a", "x", "b"]) == [values["a"]]
        found = other.report()
    assert found["chunks_read"] == 6
    assert found["chunks_missing"] == 1
    assert found["failures"] == 0
    assert {key.decode() for key in server.client().scan_iter()} == {
        KEY_PREFIX + key for key in values
    }


def test_a_chunk_lives_a_day_after_its_last_use(server: Store, remote: Remote) -> None:
    client = server.client()
    with redis_tier(remote) as tier:
        store_all(tier, chunks("a", "b"))
        day = 24 * 60 * 60
        assert day - 60 < int(client.ttl(KEY_PREFIX + "a")) <= day
        client.expire(KEY_PREFIX + "a", 100)
        load(tier, ["a"])
        until(lambda: int(client.ttl(KEY_PREFIX + "a")) > day - 60)
        client.expire(KEY_PREFIX + "b", 100)
        store_all(tier, chunks("b"))  # which another replica computed as well
        assert int(client.ttl(KEY_PREFIX + "b")) > day - 60
        assert tier.report()["chunks_known"] == 1
    with redis_tier(remote, TierLimits(ttl=0)) as tier:
        store_all(tier, chunks("c"))
    assert client.ttl(KEY_PREFIX + "c") == -1


def test_a_value_that_somebody_made_large_is_not_read_whole(server: Store, remote: Remote) -> None:
    client = server.client()

    def sent() -> int:
        return int(client.info("stats")["total_net_output_bytes"])

    with redis_tier(remote) as tier:
        store_all(tier, chunks("a", "b"))
        client.set(KEY_PREFIX + "a", bytes(30 * 2**20))
        before = sent()
        assert load(tier, ["a", "b"]) == []
        assert sent() - before < 2**20
        assert tier.report()["chunks_corrupt"] == 1
        assert tier.lookup(["a"]) == 0


def test_connections_have_names(server: Store, remote: Remote) -> None:
    with redis_tier(remote):
        names = [client["name"] for client in server.client().client_list()]
    for kind in ("lookup", "load", "write"):
        assert any(name.startswith("kserve-lmcache-") and name.endswith(kind) for name in names)


def test_only_what_an_acl_allows(server: Store, remote: Remote) -> None:
    client = server.client()
    commands = ["+ping", "+getrange", "+set", "+strlen", "+expire", "+unlink"]
    client.acl_setuser(
        "small", enabled=True, passwords=["+pass"], keys=[KEY_PREFIX + "*"], commands=commands
    )
    user = Remote(remote.url, "test", username="small", password="pass")
    with redis_tier(user) as tier:
        store_all(tier, chunks("a"))
        assert load(tier, ["a"]) == [*chunks("a").values()]
        assert tier.report()["failures"] == 0


@pytest.mark.parametrize("rotated", [False, True])
def test_a_mounted_password(tmp_path: Path, rotated: bool) -> None:
    mounted = tmp_path / "password"
    mounted.write_text("first\n")
    with redis_process(tmp_path, password="first") as server:
        remote = Remote(server.url, "test", password="first", password_file=str(mounted))
        with redis_tier(remote) as tier:
            store_all(tier, chunks("a"))
            if rotated:
                client = server.client()
                client.config_set("requirepass", "second")
                client.client_kill_filter(skipme=True)
                until(lambda: tier.lookup(["a"]) == 0 and not tier.report()["up"])
                assert "invalid username-password" in tier.report()["reason"]
                mounted.write_text("second\n")
                assert until(lambda: bool(tier.report()["up"])) < 5
            assert tier.lookup(["a"]) == 1
            assert "first" not in str(tier.report())


def test_another_database_and_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    with redis_process(tmp_path, "--unixsocket", str(path)) as server:
        for url in (f"{server.url}/3", f"unix://{path}?db=4"):
            with redis_tier(Remote(url, "test")) as tier:
                store_all(tier, chunks("a"))
                assert tier.lookup(["a"]) == 1
        assert set(server.client().info("keyspace")) == {"db3", "db4"}


def test_valkey(tmp_path: Path) -> None:
    with valkey_server(tmp_path) as server:
        remote = Remote(server.url.replace("redis://", "valkey://"), "test")
        with redis_tier(remote) as tier:
            store_all(tier, chunks("a", "b"))
            assert load(tier, ["a", "b"]) == [*chunks("a", "b").values()]


def test_no_corrupt_value_is_ever_served(server: Store, remote: Remote) -> None:
    chance = random.Random(5)
    client = server.client()
    payload = chunks("a")["a"]
    other = encode_header("other", LAYOUT, payload) + payload
    with redis_tier(remote) as tier:
        for number in range(CORRUPTIONS):
            key = f"k{number}"
            change = RANDOM_CHANGES[number % len(RANDOM_CHANGES)]
            stored = encode_header(key, LAYOUT, payload) + payload
            client.set(KEY_PREFIX + key, change(chance, stored, other))
            # A busy machine may read it too late, and again; nothing comes of it ever.
            while tier.report()["chunks_corrupt"] == number:
                assert load(tier, [key]) == []
        assert tier.report()["chunks_corrupt"] == CORRUPTIONS
        assert tier.report()["chunks_read"] == 0
        until(lambda: client.dbsize() == 0)  # each of them is deleted,
        store_all(tier, chunks("k0"))  # and makes room for a right one
        assert load(tier, ["k0"]) == [*chunks("k0").values()]


def test_corruption_is_logged_and_does_not_flood_the_log(
    server: Store, remote: Remote, caplog: pytest.LogCaptureFixture
) -> None:
    keys = [f"k{number}" for number in range(20)]
    for key in keys:
        server.client().set(KEY_PREFIX + key, b"anything")
    with redis_tier(remote) as tier:
        for key in keys:
            assert load(tier, [key]) == []
    lines = [line for line in caplog.messages if "is corrupt" in line]
    assert len(lines) == 1
    assert "8 bytes are less than a header" in lines[0]


def test_a_full_store_is_logged_and_tried_again(
    server: Store, remote: Remote, caplog: pytest.LogCaptureFixture
) -> None:
    client = server.client()
    with redis_tier(remote) as tier:
        store_all(tier, chunks("a"))
        client.config_set("maxmemory", 1)
        store_all(tier, chunks("b"))
        until(lambda: tier.report()["dropped_full"] == 1)
        store_all(tier, chunks("c"))  # not even tried
        assert tier.report()["dropped_full"] == 2
        assert tier.report()["up"]
        assert load(tier, ["a"]) == [*chunks("a").values()]

        def is_written() -> bool:
            store_all(tier, chunks("d"))
            return bool(client.exists(KEY_PREFIX + "d"))

        full_until = time.monotonic() + 8  # however long it lasts
        while time.monotonic() < full_until:
            assert not is_written()
            time.sleep(0.1)
        client.config_set("maxmemory", 0)
        assert until(is_written) < 5
    (line,) = (line for line in caplog.messages if "is full" in line)
    assert line.startswith(f"The remote tier {remote.url} is full and drops new chunks: ")
    assert "used memory > 'maxmemory'" in line


def test_the_queue_never_holds_more_than_its_bytes(server: Store, remote: Remote) -> None:
    held: set[int] = set()
    # Nine values, of which a batch has two.
    limits = TierLimits(queue_bytes=10 * SIZE, batch_bytes=3 * SIZE, write=60)
    with redis_tier(remote, limits) as tier:
        server.own_process().signal(signal.SIGSTOP)
        for number in range(100):
            key = str(number)
            held.add(number)
            tier.store(key, LAYOUT, chunks(key)[key], lambda number=number: held.discard(number))
            assert tier.report()["queue_bytes"] <= limits.queue_bytes
            assert len(held) <= 9
        found = tier.report()
        assert found["queue_bytes_max"] <= limits.queue_bytes
        assert found["dropped_queue"] == 91
        server.own_process().signal(signal.SIGCONT)
        until(lambda: not held)
    written = sorted(int(key[len(KEY_PREFIX) :]) for key in server.client().scan_iter())
    # What was being written when the store stopped, and the newest.
    assert written[2:] == [*range(93, 100)]


def test_comes_by_itself_when_the_store_does(tmp_path: Path) -> None:
    with redis_process(tmp_path) as server:
        server.kill()
        with redis_tier(Remote(server.url, "test"), wait=False) as tier:
            began = time.monotonic()
            assert tier.lookup(["a"]) == 0
            store(tier, chunks("a"))
            assert time.monotonic() - began < 0.5
            until(lambda: "refused" in tier.report()["reason"])
            server.start()
            assert until(lambda: bool(tier.report()["up"])) < 5
            until(lambda: tier.lookup(["a"]) == 1)  # it had waited in the queue


def test_a_stopped_store_costs_three_deadlines_and_comes_back(
    server: Store, remote: Remote
) -> None:
    with redis_tier(remote) as tier:
        store_all(tier, chunks("a"))
        server.own_process().signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            for _ in range(100):
                assert tier.lookup(["a"]) == 0
            assert time.monotonic() - began < 1
            assert tier.report()["lookups_skipped"] == 97
        finally:
            server.own_process().signal(signal.SIGCONT)
        assert until(lambda: bool(tier.report()["up"])) < 5
        assert load(tier, ["a"]) == [*chunks("a").values()]


def test_a_killed_store_is_missed_and_used_again(tmp_path: Path) -> None:
    with redis_process(tmp_path) as server, redis_tier(Remote(server.url, "test")) as tier:
        store_all(tier, chunks("a"))
        server.kill()
        until(lambda: tier.lookup(["a"]) == 0 and not tier.report()["up"])
        assert load(tier, ["a"]) == []
        server.start()
        assert until(lambda: bool(tier.report()["up"])) < 5
        assert tier.lookup(["a"]) == 0
        store_all(tier, chunks("a"))
        assert tier.lookup(["a"]) == 1


def test_what_waits_is_written_when_the_engine_stops(server: Store, remote: Remote) -> None:
    with redis_tier(remote) as tier:
        store(tier, chunks(*(f"k{number}" for number in range(50))))
    assert server.client().dbsize() == 50


def test_a_load_leaves_out_what_the_local_tier_has_no_room_for(remote: Remote) -> None:
    values = chunks("a", "b", "c")
    with redis_tier(remote) as tier:
        store_all(tier, values)
        room = iter([True, True, False])
        loaded = tier.load(
            [*values],
            lambda layout, size: make_room(layout, size) if next(room) else None,
            lambda value: None,
        )
        assert loaded == [values["a"], values["b"]]
        assert tier.report()["chunks_without_room"] == 1


def test_an_unexpected_exception_is_a_miss_and_is_logged_once(
    remote: Remote, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(layout: object, size: int) -> tuple[bytes, memoryview]:
        raise ZeroDivisionError("a mistake")

    with redis_tier(remote) as tier:
        store_all(tier, chunks("a"))
        for _ in range(2):
            assert tier.load(["a"], fail, lambda value: None) == []
        assert tier.report()["exceptions"] == 2
        assert tier.lookup(["a"]) == 1
    (line,) = (line for line in caplog.messages if "Unexpected exception" in line)
    assert line.startswith(f"Unexpected exception in the remote tier {remote.url}:\n")
    assert line.endswith("ZeroDivisionError: a mistake\n")
