"""The remote tier over LMCache's own connectors, healthy and failing."""

from __future__ import annotations

import functools
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.tiers.guard.codec import encode_header
from kserve_lmcache.tiers.guard.store import Entry
from kserve_lmcache.tiers.guard.tier import Tier
from kserve_lmcache.tiers.lmcache.store import LMCacheStore
from tests.support import misbehaving_connectors as misbehaving
from tests.support.lmcache_store import (
    PATIENT,
    PAYLOAD,
    chunks_are_shared,
    connectors,
    lmcache_tier,
    values_of,
)
from tests.support.probes import Probes
from tests.support.stores import LmStore, Store, lm_store, redis_process, silent_server
from tests.support.tiers import LAYOUT, load, store, store_all, threads
from tests.support.waiting import until

# The usual ones, with some room for a busy machine.
IMPATIENT = TierLimits(connect=1, lookup=0.2, load=0.5, write=1)
BUSY = 2.0  # seconds that a busy machine may add; what hangs, hangs for ever

# Probes, after which threads that stayed would be too many: three calls have hung before.
SEVERAL = 2


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> Probes:
    return Probes(monkeypatch)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LmStore]:
    with lm_store(tmp_path_factory.mktemp("lm")) as server:
        yield server


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with redis_process(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["lm", "fs", "fs, direct", "fs, spread", "resp"])
def tiers(
    request: pytest.FixtureRequest, tmp_path: Path, server: LmStore, redis: Store
) -> Callable[..., Tier]:
    """Makes tiers of one store."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()  # which the connector does not when it is to write directly
    return {
        "lm": functools.partial(lmcache_tier, server.url),
        "fs": functools.partial(lmcache_tier, f"fs://localhost:0{one}"),
        "fs, direct": functools.partial(
            lmcache_tier,
            f"fs://localhost:0{one}",
            fs_connector_use_odirect=True,
            save_chunk_meta=False,
        ),
        "fs, spread": functools.partial(lmcache_tier, f"fs://localhost:0{one},{other}"),
        "resp": functools.partial(lmcache_tier, f"resp://{redis.host}:{redis.port}"),
    }[request.param]


def files(directory: Path) -> list[Path]:
    """Those of chunks; the short one is the store's sign of life."""
    return sorted(each for each in directory.iterdir() if each.stat().st_size > PAYLOAD)


def test_one_tier_loads_what_another_stores(tiers: Callable[..., Tier]) -> None:
    with tiers() as one, tiers() as other:
        chunks_are_shared(one, other)


def test_models_with_several_groups_of_layers(tmp_path: Path) -> None:
    with lmcache_tier(f"fs://localhost:0{tmp_path}", groups=3) as tier:
        store_all(tier, values_of("a"))
        assert load(tier, ["a"]) == [*values_of("a").values()]


def _flip(path: Path) -> None:
    value = bytearray(path.read_bytes())
    value[len(value) // 2] ^= 1
    path.write_bytes(value)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def _lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:28] + bytes(4) + path.read_bytes()[28:])


def _mix_up(path: Path) -> None:
    other = next(each for each in files(path.parent) if each != path)
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("save_chunk_meta", [True, False])
@pytest.mark.parametrize("change", [_flip, _truncate, _lengthen, _mix_up])
def test_a_corrupt_file(
    tmp_path: Path, change: Callable[[Path], None], save_chunk_meta: bool
) -> None:
    values = values_of("a", "b")
    url = f"fs://localhost:0{tmp_path}"
    with lmcache_tier(url, save_chunk_meta=save_chunk_meta) as tier:
        store_all(tier, values_of("a"))
        (corrupt,) = files(tmp_path)
        store_all(tier, values_of("b"))
        change(corrupt)
        assert tier.lookup(["a", "b"]) == 2
        assert load(tier, ["a", "b"]) == []
        assert tier.report()["chunks_corrupt"] == 1
        assert tier.lookup(["a", "b"]) == 0
        until(lambda: not corrupt.exists())
        store_all(tier, values)
        assert tier.lookup(["a", "b"]) == 2
        assert load(tier, ["a", "b"]) == [*values.values()]
        assert tier.report()["failures"] == 0


def test_a_corrupt_value_that_cannot_be_deleted_is_written_anew(server: LmStore) -> None:
    values = values_of("c", "d")
    wrong = Entry("c", encode_header("d", LAYOUT, values["d"]), values["d"])
    writer = LMCacheStore(connectors(server.url), PATIENT, "write")
    writer.write([wrong])
    writer.close()
    with lmcache_tier(server.url) as tier, lmcache_tier(server.url) as other:
        assert tier.lookup(["c"]) == 1
        assert load(tier, ["c"]) == []
        assert tier.lookup(["c"]) == 0
        assert tier.report()["chunks_corrupt"] == 1
        store_all(tier, values_of("c"))
        assert tier.report()["chunks_written"] == 1
        for each in (tier, other):
            assert each.lookup(["c"]) == 1
            assert load(each, ["c"]) == [values["c"]]
        store_all(tier, values_of("c"))
        assert tier.report()["chunks_known"] == 1


def test_a_killed_server_is_missed_and_used_again(server: LmStore) -> None:
    with lmcache_tier(server.url) as tier:
        store_all(tier, values_of("a"))
        server.kill()
        until(lambda: tier.lookup(["a"]) == 0 and not tier.report()["up"])
        assert tier.report()["chunks_read"] == 0
        until(lambda: "ConnectionRefusedError" in tier.report()["reason"])
        server.start()
        assert until(lambda: bool(tier.report()["up"])) < 5
        assert tier.lookup(["a"]) == 0  # its memory is gone
        store_all(tier, values_of("a"))
        assert load(tier, ["a"]) == [*values_of("a").values()]


def test_a_stopped_server_costs_three_deadlines_and_comes_back(
    server: LmStore, probes: Probes
) -> None:
    with lmcache_tier(server.url, IMPATIENT) as tier:
        store_all(tier, values_of("a"))
        assert tier.lookup(["a"]) == 1
        server.process.signal(signal.SIGSTOP)
        try:
            _is_given_up_after_three_deadlines(tier)
            assert tier.lookup(["a"]) == 0
            assert tier.report()["lookups_skipped"] == 1
            # Probes go on, and none of their threads stays.
            probes.wait_for(SEVERAL)
            assert threads("remote-lookup") <= 2
        finally:
            server.process.signal(signal.SIGCONT)
        assert until(lambda: bool(tier.report()["up"])) < 5
        assert tier.lookup(["a"]) == 1


def test_comes_by_itself_when_the_server_does(server: LmStore) -> None:
    server.kill()
    with lmcache_tier(server.url, wait=False) as tier:
        until(lambda: "ConnectionRefusedError" in tier.report()["reason"], seconds=60)
        assert tier.lookup(["a"]) == 0
        assert tier.report()["lookups_skipped"] == 1
        server.start()
        assert until(lambda: bool(tier.report()["up"])) < 5


def test_a_server_that_never_answers(probes: Probes) -> None:
    with silent_server() as (host, port):
        url = f"lm://{host}:{port}"
        with lmcache_tier(url, IMPATIENT, wait=False) as tier:
            until(lambda: "no answer within 1 s" in tier.report()["reason"], seconds=60)
            store(tier, values_of("a"))
            probes.wait_for(SEVERAL)
            assert tier.lookup(["a"]) == 0
            assert threads("remote-lookup") <= 2
            assert tier.report()["chunks_written"] == 0


def test_a_directory_that_goes_away(tmp_path: Path) -> None:
    directory = tmp_path / "mounted"
    with lmcache_tier(f"fs://localhost:0{directory}") as tier:
        store_all(tier, values_of("a"))
        shutil.rmtree(directory)
        until(lambda: tier.lookup(["a"]) == 0 and tier.report()["opened"] == 1)
        until(lambda: bool(tier.report()["up"]))
        store_all(tier, values_of("a"))
        assert load(tier, ["a"]) == [*values_of("a").values()]


@pytest.mark.parametrize(
    "connector", [misbehaving.HangingConnector, misbehaving.HangingInAThreadConnector]
)
def test_a_connector_that_hangs_for_ever_is_left(
    connector: type[misbehaving.HangingConnector], monkeypatch: pytest.MonkeyPatch, probes: Probes
) -> None:
    with lmcache_tier(misbehaving.url_of(connector), IMPATIENT) as tier:
        store_all(tier, values_of("a"))
        monkeypatch.setattr(connector, "hangs", True)
        monkeypatch.setattr(connector, "let_go", threading.Event())
        try:
            _is_given_up_after_three_deadlines(tier)
            until(lambda: "earlier calls still hang" in tier.report()["reason"], seconds=30)
            probes.wait_for(SEVERAL)
            assert threads("remote-lookup") <= 3
            assert threads("remote-lookup-calls") <= 2 * 3
        finally:
            monkeypatch.setattr(connector, "hangs", False)
            connector.let_go.set()
        assert until(lambda: bool(tier.report()["up"])) < 5
        assert tier.lookup(["a"]) == 1
    until(lambda: not threads("remote-lookup") and not threads("remote-lookup-calls"))


def test_a_connector_that_waits_for_ever_is_cancelled(
    monkeypatch: pytest.MonkeyPatch, probes: Probes
) -> None:
    connector = misbehaving.WaitingConnector
    with lmcache_tier(misbehaving.url_of(connector), IMPATIENT) as tier:
        store_all(tier, values_of("a"))
        monkeypatch.setattr(connector, "hangs", True)
        for _ in range(3):
            assert tier.lookup(["a"]) == 0
        until(lambda: not tier.report()["up"])
        probes.wait_for(SEVERAL)
        assert threads("remote-lookup") <= 2
        assert threads("remote-lookup-calls") <= 2
        monkeypatch.setattr(connector, "hangs", False)
        assert until(lambda: bool(tier.report()["up"])) < 5
        assert tier.lookup(["a"]) == 1


@pytest.mark.parametrize(
    ("connector", "reason"),
    [
        (misbehaving.FullConnector, "No space left on device"),
        (misbehaving.ForgetfulConnector, "chunks written are missing"),
    ],
)
def test_a_full_store_is_left_alone_and_read(
    connector: type, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with lmcache_tier(misbehaving.url_of(connector)) as tier:
        store_all(tier, values_of("a", "b"))
        report = tier.report()
        assert (report["chunks_written"], report["dropped_full"]) == (0, 2)
        assert report["up"]
        assert report["failures"] == 0
    assert reason in caplog.text


@pytest.mark.parametrize("connector", [misbehaving.DeafConnector, misbehaving.ErrorCodeConnector])
def test_errors_that_look_like_answers_turn_the_breaker(
    connector: type[misbehaving.DeafConnector], monkeypatch: pytest.MonkeyPatch
) -> None:
    with lmcache_tier(misbehaving.url_of(connector)) as tier:
        store_all(tier, values_of("a"))
        assert tier.lookup(["x"]) == 0
        assert tier.lookup(["a"]) == 1
        monkeypatch.setattr(connector, "fails", True)
        for _ in range(3):
            assert tier.lookup(["a"]) == 0
        assert not tier.report()["up"]
        monkeypatch.setattr(connector, "fails", False)
        until(lambda: bool(tier.report()["up"]))
        assert tier.lookup(["a"]) == 1
        assert tier.report()["chunks_corrupt"] == 0


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("eic://h:1", "No module named 'eic'"),
        ("blackhole://", "the store does not keep what is written to it"),
    ],
)
def test_the_report_names_what_cannot_work(url: str, reason: str) -> None:
    with lmcache_tier(url, wait=False) as tier:
        until(lambda: reason in tier.report()["reason"], seconds=60)
        assert tier.lookup(["a"]) == 0
        store(tier, values_of("a"))


def test_values_that_were_never_written_are_not_served() -> None:
    # LMCache's mock gives memory that nobody wrote to.
    with lmcache_tier("mock://1/?peeking_latency=0") as tier:
        store_all(tier, values_of("a"))
        assert load(tier, ["a"]) == []
        assert tier.report()["chunks_read"] == 0


def _is_given_up_after_three_deadlines(tier: Tier) -> None:
    for _ in range(3):
        began = time.monotonic()
        assert tier.lookup(["a"]) == 0
        assert time.monotonic() - began < IMPATIENT.lookup + BUSY
    assert not tier.report()["up"]
