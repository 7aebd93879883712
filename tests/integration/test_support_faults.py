"""Each fault has the effect that it is named for, seen by a plain client, and ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.faults import FAULTS, Target, killed, target_of
from tests.support.network_faults import Lossy
from tests.support.server import with_fault_injector
from tests.support.stores import Store, node

PASSWORD = "test-password-7f1c"
VALUES = {f"key-{number}".encode(): bytes([number]) * 200_000 for number in range(8)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with node(tmp_path_factory.mktemp("store"), password=PASSWORD) as store:
        yield store


@pytest.fixture
def target(store: Store, tmp_path: Path) -> Iterator[Target]:
    """With the same values before each test, and healthy after it."""
    with target_of(store, tmp_path) as target:
        with closing(store.client()) as client:
            client.flushall()
            client.mset(VALUES)
        yield target
        with closing(through(target)) as client:
            assert client.ping()


def through(target: Target, timeout: float = 10.0) -> redis.Redis:
    """A client as anybody would make one, by the link."""
    return redis.Redis(
        target.link.host,
        target.link.port,
        password=PASSWORD,
        socket_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
    )


def held(target: Target) -> dict[bytes, bytes]:
    """What a client finds of the values."""
    with closing(through(target)) as client:
        found = zip(VALUES, client.mget(list(VALUES)), strict=True)
        return {key: value for key, value in found if value is not None}


def seconds_of(action: Callable[[], object]) -> float:
    start = time.monotonic()
    action()
    return time.monotonic() - start


def test_refused(target: Target) -> None:
    with FAULTS["refused"].applied(target):
        for client in (through(target), target.store.client()):
            with pytest.raises(redis.ConnectionError, match=r"refused|111"):
                client.ping()
    assert held(target) == VALUES


def test_killed_and_restarted(target: Target) -> None:
    old = through(target)
    assert old.ping()
    start = time.monotonic()
    with killed(target, seconds=1.0):
        with pytest.raises(redis.ConnectionError):
            old.ping()
        with pytest.raises(redis.ConnectionError, match=r"refused|111"):
            through(target).ping()
    assert 1.0 < time.monotonic() - start < 5
    assert held(target) == {}


def test_two_writers(target: Target) -> None:
    def writes() -> int:
        with closing(target.store.client()) as client:
            return int(client.info("commandstats").get("cmdstat_set", {"calls": 0})["calls"])

    before = writes()
    with FAULTS["two writers"].applied(target):
        target.store.own_process().wait_until(lambda: writes() > before + len(VALUES), 10)
        assert held(target) == VALUES
    after = writes()
    assert held(target) == VALUES
    assert writes() == after


def test_stopped(target: Target) -> None:
    with FAULTS["stopped"].applied(target):
        with pytest.raises(redis.TimeoutError):
            through(target, 0.3).ping()
        waiting = through(target).pipeline()
    assert waiting.get(b"key-1").execute() == [VALUES[b"key-1"]]


def test_never_answers(target: Target) -> None:
    old = through(target, 1)
    assert old.ping()
    used = through(target, 5).connection_pool.get_connection()
    with FAULTS["never answers"].applied(target):
        used._sock.sendall(b"PING\r\n")
        for client in (old, through(target, 0.3)):
            with pytest.raises(redis.TimeoutError):
                client.ping()
    with pytest.raises(ConnectionResetError):
        used._sock.recv(1)
    assert old.ping()


def test_one_byte_a_second(target: Target) -> None:
    with closing(through(target)) as client:
        assert client.ping()
        connection = client.connection_pool.get_connection()
        with FAULTS["one byte a second"].applied(target):
            connection.send_command("PING")
            assert connection._sock.recv(10) == b"+"
            start = time.monotonic()
            assert connection._sock.recv(10) == b"P"
            assert 0.8 < time.monotonic() - start < 3
        assert connection._sock.recv(10) == b"ONG\r\n"


def test_reset_in_mid_value(target: Target) -> None:
    client = through(target)
    with FAULTS["reset in mid-value"].applied(target):
        assert client.ping()
        with pytest.raises(redis.ConnectionError, match=r"reset|104"):
            client.get(b"key-1")
        with through(target).client() as plain, pytest.raises(redis.ConnectionError):
            plain.get(b"key-1")
    assert client.get(b"key-1") == VALUES[b"key-1"]


def test_delay_and_loss(target: Target) -> None:
    client = through(target, 30)
    assert client.ping()
    with FAULTS["200 ms and 30 % loss"].applied(target):
        answers = [seconds_of(client.ping) for _ in range(3)]
        assert min(answers) >= 0.4  # both ways
        assert seconds_of(lambda: client.get(b"key-1")) > 0.4
    assert seconds_of(client.ping) < 0.4


def test_what_is_lost_comes_late_and_in_order(target: Target) -> None:
    client = through(target, 30)
    lossy = Lossy(delay=0.0, loss=0.3, timeout=0.01, segment=1 << 12, seed=3)
    with target.link.behaving(lossy):
        assert seconds_of(lambda: client.get(b"key-1")) > 0.1
        assert client.mget(list(VALUES)[:2]) == list(VALUES.values())[:2]
        pending = client.connection_pool.get_connection()
        pending.send_command("GET", b"key-2")
    # What was under way when the fault ended is not overtaken by what came after it.
    pending.send_command("GET", b"key-3")
    assert pending.read_response() == VALUES[b"key-2"]
    assert pending.read_response() == VALUES[b"key-3"]


def test_nothing_is_under_way_any_more_when_a_lossy_way_ends() -> None:
    class SlowLane:
        connection = SimpleNamespace(is_over=False)
        sent: ClassVar[list[bytes]] = []

        def send(self, data: bytes) -> None:
            time.sleep(0.3)
            self.sent.append(data)

    lossy, lane = Lossy(delay=0.1, loss=0.0), SlowLane()
    lossy.carry(lane, b"data")
    lossy.ended.set()
    lossy.finish(lane)
    assert lane.sent == [b"data"]
    lane.connection.is_over = True


def test_a_name_that_is_gone(target: Target) -> None:
    assert target.names
    script = (
        "import redis, sys\n"
        "for line in sys.stdin:\n"
        "    try: print(redis.Redis.from_url(sys.argv[1], password=sys.argv[2]).ping())\n"
        "    except redis.ConnectionError as error: print(error)\n"
        "    sys.stdout.flush()\n"
    )
    command = [*target.names.prefix, sys.executable, "-c", script, target.url, PASSWORD]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:

        def ping() -> str:
            assert client.stdin
            assert client.stdout
            print(file=client.stdin, flush=True)
            return client.stdout.readline().strip()

        assert ping() == "True"
        with FAULTS["name gone"].applied(target):
            assert "Name or service not known" in ping()
        assert ping() == "True"


def test_a_rotated_password(target: Target) -> None:
    old = through(target)
    assert old.ping()
    with FAULTS["password rotated"].applied(target):
        with pytest.raises(redis.ConnectionError):
            old.ping()  # on the connection that is lost, or already on a new one
        for client in (old, through(target)):
            with pytest.raises(redis.AuthenticationError):
                client.ping()
    assert held(target) == VALUES


def test_a_rotated_password_of_a_user(tmp_path: Path) -> None:
    with (
        node(tmp_path, username="cache", password=PASSWORD) as store,
        target_of(store) as target,
    ):
        with FAULTS["password rotated"].applied(target), pytest.raises(redis.AuthenticationError):
            store.client().ping()
        assert store.client().ping()


def test_out_of_memory(target: Target) -> None:
    client = through(target)
    with FAULTS["out of memory"].applied(target):
        with pytest.raises(redis.OutOfMemoryError):
            client.set("new", b"value")
        assert client.get(b"key-1") == VALUES[b"key-1"]
    assert client.set("new", b"value")


def test_evicting(target: Target) -> None:
    client = through(target)
    with FAULTS["evicting"].applied(target):
        for number in range(8):
            assert client.set(f"new-{number}", bytes(200_000))
        assert 0 < client.dbsize() <= len(VALUES)
        assert len(held(target)) < len(VALUES)
    for key, value in VALUES.items():
        client.set(b"again-" + key, value)
    assert client.dbsize() > len(VALUES)


@pytest.mark.parametrize(
    ("name", "is_damaged"),
    [
        ("values truncated", lambda old, new: len(new) < len(old) and old.startswith(new)),
        ("values extended", lambda old, new: len(new) > len(old) and new.startswith(old)),
        (
            "values bit flipped",
            lambda old, new: (
                (int.from_bytes(old, "big") ^ int.from_bytes(new, "big")).bit_count() == 1
            ),
        ),
        (
            "values header changed",
            lambda old, new: (
                (old[:4], old[6:]) == (new[:4], new[6:]) and old[4] != new[4] and old[5] != new[5]
            ),
        ),
        ("values swapped", lambda old, new: old != new and new in VALUES.values()),
    ],
)
def test_damaged_values(
    target: Target, name: str, is_damaged: Callable[[bytes, bytes], bool]
) -> None:
    with closing(through(target)) as client:
        client.expire(b"key-1", 1000)
        with FAULTS[name].applied(target):
            found = held(target)
            assert set(found) == set(VALUES)
            assert all(is_damaged(VALUES[key], value) for key, value in found.items())
            assert 900 < client.ttl(b"key-1") <= 1000
            client.set(b"key-2", b"written meanwhile")
            client.delete(b"key-3")
        expected = {**VALUES, b"key-2": b"written meanwhile"}
        del expected[b"key-3"]
        assert held(target) == expected
        assert 900 < client.ttl(b"key-1") <= 1000


def test_nothing_to_damage(target: Target) -> None:
    with closing(target.store.client()) as client:
        client.flushall()
    with (
        pytest.raises(AssertionError, match="none of the store's 0 values"),
        FAULTS["values truncated"].applied(target),
    ):
        pass


def test_every_fault_is_tried_here() -> None:
    tried = Path(__file__).read_text()
    for name in FAULTS:
        assert f'"{name}"' in tried or name == "killed, back after 1 s", name


@pytest.mark.parametrize("delay", ["0", "0.25"])
def test_loads_are_delayed_in_other_processes(delay: str) -> None:
    code = (
        "import lmcache.v1.cache_engine as module;"
        "print(module.LMCacheEngine.retrieve.__code__.co_filename)"
    )
    environ = os.environ | {
        "PYTHONPATH": with_fault_injector(os.environ),
        "FAULT_INJECTOR_LOAD_DELAY": delay,
    }
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert ("fault_injector" in result.stdout.split()[-1]) == (delay != "0")
