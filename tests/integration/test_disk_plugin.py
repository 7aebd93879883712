"""The disk tier as LMCache's engine uses it, alone and before a remote one."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kserve_lmcache.config import engine_file
from kserve_lmcache.config.stores import Disk, Remote
from kserve_lmcache.config.tier_plugins import DISK_PLUGIN, PLUGINS, REMOTE_PLUGIN
from kserve_lmcache.tiers.disk.directory import file_name
from kserve_lmcache.tiers.guard.codec import encode_header
from kserve_lmcache.tiers.plugin import DiskTierAdapter, RemoteTierAdapter
from tests.support.damage import RANDOM_CHANGES
from tests.support.replica import CHUNK, TOKENS, Replica, alike, pages, prompt, replica
from tests.support.stores import redis_process
from tests.support.tiers import LAYOUT, chunks, disk_tier, load, store_all
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("same_keys")

CORRUPTIONS = 1_000
GIB = 2**30


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk((str(tmp_path / "cache"),), GIB)


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    with redis_process(tmp_path_factory.mktemp("redis")) as server:
        yield Remote(server.url, "test")


def files(one: Replica, disk: Disk, number: int) -> list[Path]:
    """The files of a prompt's chunks."""
    (directory,) = disk.directories
    return [Path(directory, file_name(key.to_string())) for key in one.keys(prompt(number))]


def test_what_one_replica_stores_its_successor_loads(disk: Disk) -> None:
    with replica(None, disk=disk) as one:
        one.store(prompt(1), pages(1))
    with replica(None, disk=disk) as other:
        found, came, target = other.load(prompt(1))
        assert (found, came) == (TOKENS, TOKENS)
        assert alike(target, pages(1))
        assert other.load(prompt(1))[:2] == (TOKENS, TOKENS)
        assert other.count("loads") == 1  # the second came from memory
        assert other.count("files") == TOKENS // CHUNK


def test_a_prompt_of_which_the_disk_has_the_beginning_and_redis_the_rest(
    disk: Disk, remote: Remote
) -> None:
    with replica(remote, disk=disk) as one:
        one.store(prompt(2), pages(2))
        assert [*one.connectors] == ["disk", "remote"]
        for path in files(one, disk, 2)[2:]:
            path.unlink()
    with replica(remote, disk=disk) as other:
        found, came, target = other.load(prompt(2))
        assert (found, came) == (TOKENS, TOKENS)
        assert alike(target, pages(2))
        reads = [other.count("chunks_read", tier) for tier in other.connectors]
        assert reads == [2, TOKENS // CHUNK - 2]


def test_the_disk_is_asked_first(disk: Disk, remote: Remote) -> None:
    with replica(remote, disk=disk) as one:
        one.store(prompt(3), pages(3))
    with replica(remote, disk=disk) as other:
        assert other.load(prompt(3))[:2] == (TOKENS, TOKENS)
        assert other.count("lookups", "remote") == other.count("chunks_read", "remote") == 0


def test_what_is_lost_on_the_disk_ends_the_load_and_comes_from_redis_then(
    disk: Disk, remote: Remote
) -> None:
    with replica(remote, disk=disk) as one:
        one.store(prompt(4), pages(4))
        second = files(one, disk, 4)[1]
    content = second.read_bytes()
    second.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with replica(remote, disk=disk) as other:
        found, came, target = other.load(prompt(4))
        assert (found, came) == (TOKENS, CHUNK)
        assert alike(target, pages(4), CHUNK)
        until(lambda: not second.exists())
        found, came, target = other.load(prompt(4))
        assert (found, came) == (TOKENS, TOKENS)
        assert alike(target, pages(4))
        assert other.count("chunks_read", "remote") == TOKENS // CHUNK - 1


def test_lmcache_makes_no_disk_tier_of_its_own(disk: Disk, tmp_path: Path) -> None:
    values = {"local_disk": disk.directories[0], "max_local_disk_size": 1.0, "chunk_size": CHUNK}
    path = tmp_path / "engine.yaml"
    with replica(None, disk=disk) as one:
        engine_file.write(values, None, path, disk=(disk, one.tier._limits))
        told = engine_file.read(path)
        assert told["extra_config"].items() >= one.engine.config.extra_config.items()
        assert told["remote_storage_plugins"] == one.engine.config.remote_storage_plugins
        assert {*told} == {"chunk_size", "extra_config", "remote_storage_plugins"}
        backends = one.engine.storage_manager.storage_backends
        assert [*backends] == ["LocalCPUBackend", f"RemoteBackend-{DISK_PLUGIN.name}"]


def test_each_plugin_has_a_file_name_its_own() -> None:
    """One begins as the other does, which is all that LMCache's own adapters look at."""
    for adapter, mine in ((RemoteTierAdapter(), REMOTE_PLUGIN), (DiskTierAdapter(), DISK_PLUGIN)):
        assert [each for each in PLUGINS if adapter.can_parse(f"plugin://{each.name}")] == [mine]


def test_the_threads_of_a_tier_end_with_it(disk: Disk) -> None:
    with replica(None, disk=disk) as one:
        one.store(prompt(5), pages(5))
        names = {thread.name for thread in threading.enumerate()}
        assert {"disk-scan", "disk-write", "disk-lookup"} <= names
    until(lambda: not any(each.name.startswith("disk-") for each in threading.enumerate()))


def test_no_corrupt_file_is_ever_served(tmp_path: Path) -> None:
    chance = random.Random(5)
    payload = chunks("a")["a"]
    other = encode_header("other", LAYOUT, payload) + payload
    with disk_tier(tmp_path, GIB) as tier:
        for number in range(CORRUPTIONS):
            key = f"k{number}"
            change = RANDOM_CHANGES[number % len(RANDOM_CHANGES)]
            stored = encode_header(key, LAYOUT, payload) + payload
            tier.path(key).write_bytes(change(chance, stored, other))
            while tier.count("chunks_corrupt") == number:
                assert load(tier.tier, [key]) == []
        assert tier.count("chunks_corrupt") == CORRUPTIONS
        assert tier.count("chunks_read") == 0
        until(lambda: not any(tmp_path.iterdir()))  # each of them is deleted,
        store_all(tier.tier, chunks("k0"))  # and makes room for a right one
        assert load(tier.tier, ["k0"]) == [*chunks("k0").values()]
