"""The remote tier before a real S3 store and a real Mooncake, by LMCache's connectors."""

from __future__ import annotations

import ctypes
import itertools
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import httpx
import pytest

from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.tiers.guard.tier import Tier
from kserve_lmcache.tiers.lmcache import mooncake as mooncake_connector
from kserve_lmcache.tiers.lmcache.values import short_key
from tests.support.background import repeating
from tests.support.lmcache_store import PATIENT, chunks_are_shared, lmcache_tier, values_of
from tests.support.probes import Probes
from tests.support.stores.mooncake import MooncakeStore, client, mooncake_store
from tests.support.stores.s3 import BUCKET, S3Store, s3_server
from tests.support.tiers import load, store_all, threads
from tests.support.waiting import until

# awscrt says so of every request that was left before its end.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

# The usual ones, with some room for a busy machine.
IMPATIENT = TierLimits(connect=2, lookup=0.5, load=1, write=2)
BUSY = 2.0  # seconds that a busy machine may add; what hangs there, hangs for 30 or for ever
Server = S3Store | MooncakeStore


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Store]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def mooncake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MooncakeStore]:
    with (
        mooncake_store(tmp_path_factory.mktemp("mooncake")) as server,
        pytest.MonkeyPatch.context() as monkeypatch,
    ):
        if library := server.environment.get("LD_LIBRARY_PATH"):
            # What is loaded already needs not be found; another process finds it by the path.
            ctypes.CDLL(str(Path(library) / "libibverbs.so.1"), mode=ctypes.RTLD_GLOBAL)
            monkeypatch.setenv("LD_LIBRARY_PATH", library)
        yield server


@pytest.fixture(params=["s3", "mooncake"])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    return found


def tier_of(server: Server, limits: TierLimits = PATIENT) -> AbstractContextManager[Tier]:
    """Another process lends Mooncake its memory."""
    extra = {**server.extra_config, "mooncake_global_segment_size": "0"}
    return lmcache_tier(server.url, limits, **extra)


def test_what_one_stores_another_loads(server: Server) -> None:
    with tier_of(server) as one, tier_of(server) as other:
        chunks_are_shared(one, other)


def test_the_object_store_refuses_unsigned_requests(s3: S3Store) -> None:
    unsigned = httpx.get(f"http://127.0.0.1:{s3.port}/another")
    assert unsigned.status_code == 403
    assert f"<BucketName>{BUCKET}</BucketName>" in unsigned.text


def test_a_corrupt_object(s3: S3Store) -> None:
    with tier_of(s3) as tier:
        store_all(tier, values_of("a", "b"))
        name = short_key("a").to_string()
        value = s3.get(name)
        assert value is not None
        for wrong in _corrupt(value):
            s3.put(name, wrong)
            _is_missing_until_it_is_written_anew(tier)


def test_a_corrupt_value_of_mooncake(mooncake: MooncakeStore) -> None:
    with tier_of(mooncake) as tier, closing(client(mooncake)) as ours:
        store_all(tier, values_of("a", "b"))
        name = short_key("a").to_string()
        for wrong in _corrupt(ours.get(name)):
            assert ours.remove(name, True) == 0
            assert ours.put(name, wrong) == 0
            _is_missing_until_it_is_written_anew(tier)


def _corrupt(value: bytes) -> tuple[bytes, bytes]:
    return value[:9999] + bytes([value[9999] ^ 1]) + value[10000:], value[:1000]


def _is_missing_until_it_is_written_anew(tier: Tier) -> None:
    before = tier.report()["chunks_corrupt"]
    assert tier.lookup(["a", "b"]) == 2
    assert load(tier, ["a", "b"]) == []
    assert tier.lookup(["a", "b"]) == 0
    store_all(tier, values_of("a"))
    assert tier.lookup(["a", "b"]) == 2
    assert load(tier, ["a", "b"]) == [*values_of("a", "b").values()]
    assert tier.report()["chunks_corrupt"] == before + 1
    assert tier.report()["failures"] == 0


def test_a_stopped_server_is_left_alone_and_used_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes = Probes(monkeypatch)
    with tier_of(server, IMPATIENT) as tier:
        store_all(tier, values_of("a"))
        assert tier.lookup(["a"]) == 1
        server.process.signal(signal.SIGSTOP)
        try:
            with nobody_stands_still():
                _is_given_up(tier)
                probes.wait_for(2)  # after three calls that have hung
                for name in ("remote-lookup", "remote-load", "remote-write"):
                    assert threads(name) <= 3
        finally:
            server.process.signal(signal.SIGCONT)
        # Mooncake's calls that hang end with its own time limit of 30 s at the latest.
        assert until(lambda: bool(tier.report()["up"]), seconds=60) < 5
        assert tier.lookup(["a"]) == 1


def test_a_killed_server_is_missed_and_used_again(server: Server) -> None:
    with tier_of(server, IMPATIENT) as tier:
        store_all(tier, values_of("a"))
        server.process.signal(signal.SIGKILL)
        server.process.wait(10)
        with nobody_stands_still():
            _is_given_up(tier)
        server.process = server.process.again()
        server.process.wait_until(server.answers, 60)
        assert until(lambda: bool(tier.report()["up"]), seconds=60) < 5


def test_a_master_that_is_not_there_stops_nobody(
    mooncake: MooncakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The trial takes all of this time, however long it is.
    monkeypatch.setattr(mooncake_connector, "_TRIAL_SECONDS", 6.0)
    mooncake.process.signal(signal.SIGKILL)
    mooncake.process.wait(10)
    with (
        nobody_stands_still(),
        lmcache_tier(mooncake.url, wait=False, **mooncake.extra_config) as tier,
    ):
        until(lambda: "Mooncake's setup takes more than 6 s" in tier.report()["reason"], seconds=60)
        assert tier.lookup(["a"]) == 0


def _is_given_up(tier: Tier) -> None:
    # What Mooncake's client was asked for just now it still knows.
    number = 0
    while tier.report()["up"]:
        number += 1
        assert number < 30
        began = time.monotonic()
        assert tier.lookup([f"new {number}"]) == 0
        assert time.monotonic() - began < IMPATIENT.lookup + BUSY


@contextmanager
def nobody_stands_still() -> Iterator[None]:
    """Whatever is called meanwhile, other threads go on."""
    ticks = [time.monotonic()]
    with repeating(lambda: ticks.append(time.monotonic()), pause=0.01):
        yield
    assert max(later - earlier for earlier, later in itertools.pairwise(ticks)) < 3
