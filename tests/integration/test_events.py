"""KV-cache events of our tiers: a reader's index is what the tiers hold."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from vllm.config.kv_events import KVEventsConfig
from vllm.distributed.kv_events import BlockStored
from vllm.lora.request import LoRARequest
from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash

from kserve_lmcache.compat.lmcache.local_index import key_maker
from kserve_lmcache.config import engine_file
from kserve_lmcache.config.stores import Disk, Remote
from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.connector.isolation import tag_of, tag_suffix
from kserve_lmcache.identity.namespace import ADAPTER
from kserve_lmcache.tiers.changes import chunk_of
from kserve_lmcache.tiers.disk.directory import file_name
from kserve_lmcache.tiers.guard import presence
from kserve_lmcache.tiers.redis.client import KEY_PREFIX
from tests.support.event_readers import Reader, reading
from tests.support.ports import free_port
from tests.support.simulated_engine import (
    BLOCK,
    CHUNK,
    HEAD_SIZE,
    HEADS,
    LAYERS,
    SimulatedEngine,
    simulated,
)
from tests.support.stores import Store
from tests.support.waiting import until

CHUNK_BYTES = CHUNK * LAYERS * HEADS * 2 * HEAD_SIZE * 4
LOCALITY = "locality" in BlockStored.__struct_fields__  # since vLLM 0.28
PATIENT = TierLimits(lookup=5, load=20)
# Room for this many chunks in the local tier of a test of evictions. LMCache aligns chunks.
FEW = 48


@dataclass
class Replica:
    """An engine with events, and who reads them.

    Attributes:
        asked: requests that were made, from which the hashes are computed anew.
    """

    engine: SimulatedEngine
    reader: Reader
    asked: list[Any] = field(default_factory=list)

    def ask(self, prompt: list[int], **options: Any) -> list[int]:
        name = f"request {len(self.asked)}"
        answer = self.engine.ask(name, prompt, **options)
        request = self.engine.request(name, prompt + answer, **options)
        self.engine.parts[0]._isolation.mark(request)
        self.asked.append(request)
        return answer

    def hashes(self) -> dict[str, set[int]]:
        """VLLM's hashes of each chunk's blocks, by the chunk's name."""
        database = self.engine.adapters[1].lmcache_engine.token_database
        found: dict[str, set[int]] = {}
        for request in self.asked:
            tag = tag_suffix(tag_of(request))
            external = [maybe_convert_block_hash(each) for each in request.block_hashes]
            for begin, end, key in database.process_tokens(list(request.all_token_ids)):
                if end - begin == CHUNK:
                    name = "@".join(filter(None, [chunk_of(key.to_string()), tag]))
                    found[name] = set(external[begin // BLOCK : end // BLOCK])
        return found

    def local(self) -> set[int]:
        """What the reader should have of the local tier."""
        backends = self.engine.adapters[1].lmcache_engine.storage_manager.storage_backends
        return self._of(key.to_string() for key in list(backends["LocalCPUBackend"].hot_cache))

    def disk(self, directory: Path) -> set[int]:
        """The same of the disk, by its files."""
        names = {path.name for path in directory.glob("*.kv")}
        return self._of(each for each in map(self.key, self.hashes()) if file_name(each) in names)

    def remote(self, store: Store) -> set[int]:
        """The same of the store, by its keys."""
        keys = {each.decode().removeprefix(KEY_PREFIX) for each in store.chunks()}
        return self._of(keys)

    def settles(self, tier: str, expected: Any, seconds: float = 10) -> None:
        """Wait until the reader has what is expected, and both readers agree."""
        try:
            until(lambda: self.reader.hashes(tier) == expected(), seconds)
        except AssertionError:
            assert self.reader.hashes(tier) == expected()
        assert not self.reader.index.dropped
        assert self.reader.index.counts() <= {1}

    def usable(self, held: set[int]) -> set[int]:
        """The blocks of a tier that can be loaded: those before them are held as well."""
        anywhere = held | self.reader.hashes("gpu")
        found: set[int] = set()
        for request in self.asked:
            hashes = [maybe_convert_block_hash(each) for each in request.block_hashes]
            found.update(itertools.takewhile(anywhere.__contains__, hashes))
        return held & found

    def _of(self, keys: Any) -> set[int]:
        hashes = self.hashes()
        return set().union(*(hashes[chunk_of(key)] for key in keys))

    def key(self, name: str) -> str:
        """LMCache's key of a chunk."""
        return key_maker(self.engine.adapters[1].lmcache_engine)(name)


@contextmanager
def replica(
    directory: Path,
    local_bytes: int = 64 << 20,
    disk: Disk | None = None,
    remote: Remote | None = None,
    events: dict[str, Any] | None = None,
    lmcache: dict[str, Any] | None = None,
    **arguments: Any,
) -> Iterator[Replica]:
    """An engine whose events are read.

    Args:
        directory: for its files.
        local_bytes: of the local tier.
        disk: a disk tier.
        remote: a remote tier.
        events: more of vLLM's configuration of events.
        lmcache: more of LMCache's configuration.
        **arguments: vLLM's.
    """
    directory.mkdir(exist_ok=True)
    for left in directory.iterdir():
        left.unlink()
    file = directory / engine_file.NAME
    values = {
        "chunk_size": CHUNK,
        "max_local_cpu_size": local_bytes / 2**30,
        "pre_caching_hash_algorithm": "sha256_cbor",
        "remote_url": remote and remote.url,
        "remote_serde": "naive",
        **(lmcache or {}),
    }
    engine_file.write(values, remote, file, PATIENT, disk and (disk, PATIENT))
    endpoint, replay = (f"tcp://127.0.0.1:{free_port()}" for _ in range(2))
    config = KVEventsConfig(
        enable_kv_cache_events=True,
        endpoint=endpoint.replace("127.0.0.1", "*"),
        replay_endpoint=replay,
        topic="kv@pod@simulated",
        **(events or {}),
    )
    with ExitStack() as stack:
        variables = {
            "CONFIG_FILE": str(file),
            "MAX_LOCAL_CPU_SIZE": str(values["max_local_cpu_size"]),
        }
        engine = stack.enter_context(
            simulated(directory, lmcache=variables, kv_events_config=config, **arguments)
        )
        reader = stack.enter_context(reading(endpoint, replay, "kv@"))
        reader.catch_up()
        for name in engine.parts[1]._cache.tier_names:
            connector = engine.parts[1]._cache._connectors[name]
            until(lambda tier=connector.tier: tier.report()["up"])  # type: ignore[misc]
        yield Replica(engine, reader)


@pytest.fixture(autouse=True)
def _seed(same_keys: None) -> None:
    """Equal hashes in every process."""


def prompt(number: int, chunks: int = 3) -> list[int]:
    """Tokens that share no prefix with those of another number."""
    return random.Random(number).choices(range(250), k=chunks * CHUNK + 5)


def test_the_index_is_the_local_tier_and_the_engine_may_be_idle(tmp_path: Path) -> None:
    with replica(tmp_path / "one") as one:
        assert one.reader.events[0] == {"type": "AllBlocksCleared"}
        one.ask(prompt(1))
        began = time.monotonic()
        one.settles("cpu", one.local)  # no step runs any more
        assert time.monotonic() - began < 1
        assert len(one.local()) == 3 * CHUNK // BLOCK
        assert one.local() <= one.reader.hashes("gpu")  # they are vLLM's own hashes
        stored = [each for each in one.reader.events if each.get("medium") == "CPU"]
        own = [each for each in one.reader.events if each.get("medium") == "GPU"]
        by_hash = {name: each for each in own for name in each["block_hashes"]}
        first = stored[0]
        assert first["block_size"] == BLOCK
        assert first["token_ids"] == prompt(1)[:CHUNK]
        assert first.get("parent_block_hash") is None
        assert stored[1]["parent_block_hash"] == first["block_hashes"][-1]
        for field_name in ("group_idx", "kv_cache_spec_kind", "lora_name", "lora_id"):
            theirs = by_hash[first["block_hashes"][0]].get(field_name)
            assert first.get(field_name) == theirs, field_name


def test_after_a_thousand_evictions_the_index_is_the_local_tier(tmp_path: Path) -> None:
    with replica(tmp_path / "one", local_bytes=FEW * CHUNK_BYTES) as one:
        for number in range(400):
            one.ask(prompt(number), count=1)
        one.settles("cpu", one.local, 20)
        removed = [
            each
            for each in one.reader.events
            if each["type"] == "BlockRemoved" and each["medium"] == "CPU"
        ]
        assert len(removed) >= 1000
        assert one.local()
        assert one.reader.dynamo.hashes("host") == one.local()


@pytest.mark.parametrize("policy", ["LRU", "LFU", "FIFO", "MRU"])
def test_every_policy_tells_its_evictions(tmp_path: Path, policy: str) -> None:
    with replica(
        tmp_path / "one", local_bytes=FEW * CHUNK_BYTES, lmcache={"cache_policy": policy}
    ) as one:
        for number in range(40):
            one.ask(prompt(number % 25), count=1)
        # MRU evicts the first chunks of a prompt to make room for its last ones.
        until(lambda: one.usable(one.local()) <= one.reader.hashes("cpu") <= one.local())
        assert policy == "MRU" or one.reader.hashes("cpu") == one.local()
        assert one.reader.index.counts() == {1}
        assert any(each["type"] == "BlockRemoved" for each in one.reader.events)


def test_after_a_reset_of_the_prefix_cache_the_tiers_are_told_anew(tmp_path: Path) -> None:
    with replica(tmp_path / "one") as one:
        one.ask(prompt(1))
        one.settles("cpu", one.local)
        one.engine.forget_local()
        one.ask([1, 2, 3])  # vLLM tells the reset in its next step
        until(lambda: not one.reader.hashes("gpu"))
        one.settles("cpu", one.local)
        assert sum(each["type"] == "AllBlocksCleared" for each in one.reader.events) == 2
        assert one.reader.tokens(prompt(1), BLOCK) == 3 * CHUNK


def test_tenants_and_adapters_have_events_of_their_own(tmp_path: Path) -> None:
    adapter = LoRARequest("first", 1, "/adapters/first")
    with replica(tmp_path / "one", enable_lora=True, max_lora_rank=8) as one:
        made = one.engine.request

        def request(name: str, tokens: list[int], count: int = 4, **options: Any) -> Any:
            asked = made(name, tokens, count, **options)
            if asked.lora_request is not None:
                asked.sampling_params.extra_args = {ADAPTER: "content"}
            return asked

        one.engine.request = request  # type: ignore[method-assign]
        one.ask(prompt(1))
        one.ask(prompt(1), cache_salt="salt")
        one.ask(prompt(1), lora_request=adapter)
        one.settles("cpu", one.local)
        assert len(one.local()) == 3 * 3 * CHUNK // BLOCK
        assert one.reader.tokens(prompt(1), BLOCK, salt="salt") == 3 * CHUNK
        assert one.reader.tokens(prompt(1), BLOCK, salt="other") == 0
        stored = [each for each in one.reader.events if each.get("medium") == "CPU"]
        assert {each.get("lora_name") for each in stored} == {None, "first"}


def test_answers_and_prompts_without_a_lookup_are_announced(tmp_path: Path) -> None:
    with replica(tmp_path / "one", lmcache={"save_decode_cache": True}) as one:
        one.ask(prompt(1, chunks=1), count=2 * CHUNK)
        one.settles("cpu", one.local)
        assert len(one.local()) == 3 * CHUNK // BLOCK


def test_a_lost_batch_is_asked_for_and_the_index_is_right_again(tmp_path: Path) -> None:
    with replica(tmp_path / "one") as one:
        one.ask(prompt(1))
        one.settles("cpu", one.local)
        one.reader.lose = 2
        one.ask(prompt(2))
        one.ask(prompt(3))
        one.ask(prompt(4))
        one.settles("cpu", one.local)


def test_a_late_reader_gets_all_although_the_buffer_is_short(tmp_path: Path) -> None:
    with replica(
        tmp_path / "one", local_bytes=FEW * CHUNK_BYTES, events={"buffer_steps": 20}
    ) as one:
        for number in range(60):
            one.ask(prompt(number), count=1)
        one.settles("cpu", one.local)
        assert one.reader.restarts > 2
        with reading(one.reader.endpoint, one.reader.replay, "kv@") as late:
            late.catch_up()
            assert late.hashes("cpu") == one.local()
            assert late.hashes("gpu") == one.reader.hashes("gpu")
            assert not late.index.dropped
            one.ask(prompt(100))
            until(lambda: late.hashes("cpu") == one.local())


def usable(chunks: list[tuple[str, set[int]]], names: set[str]) -> set[int]:
    """The hashes of two prompts of three chunks, up to the first chunk whose file is missing."""
    found: set[int] = set()
    for begin in (0, 3):
        for name, hashes in chunks[begin : begin + 3]:
            if name not in names:
                break
            found |= hashes
    return found


def test_a_disk_is_announced_its_evictions_and_a_foreign_hand_too(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    with replica(tmp_path / "one", disk=Disk((str(folder),), 40 * (CHUNK_BYTES + 4096))) as one:
        for number in range(30):
            one.ask(prompt(number), count=1)
        one.settles("storage", lambda: one.disk(folder), 20)
        assert 0 < len(one.disk(folder)) < len(one.local())
        victim = next(folder.glob("*.kv"))
        victim.unlink()
        one.settles("storage", lambda: one.disk(folder), 20)
        (place,) = {
            (each["medium"], each.get("locality"))
            for each in one.reader.events
            if each.get("medium") == "STORAGE"
        }
        assert place == ("STORAGE", "LOCAL" if LOCALITY else None)


def test_after_a_restart_the_disk_is_announced_again(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    disk = Disk((str(folder),), 2**30)
    with replica(tmp_path / "one", disk=disk) as one:
        one.ask(prompt(1))
        one.ask(prompt(2), cache_salt="salt")
        one.settles("storage", lambda: one.disk(folder))
        held = one.disk(folder)
        assert len(held) == 2 * 3 * CHUNK // BLOCK
        chunks = [(file_name(one.key(name)), found) for name, found in one.hashes().items()]
    (journal,) = folder.glob("*.sqlite")
    assert journal.stat().st_mode & 0o77 == 0
    gone = next(folder.glob("*.kv"))
    gone.unlink()
    # Of a server that has been away for days, and of another one.
    foreign = folder / "chunks-00.sqlite"
    foreign.write_bytes(b"prompts")
    for path in (journal, foreign):
        os.utime(path, (0, 0))
    with replica(tmp_path / "two", disk=disk) as two:
        # Nobody asks for the prompts. What follows a missing chunk cannot be loaded.
        two.reader.catch_up()
        names = {path.name for path in folder.glob("*.kv")}
        until(lambda: two.reader.hashes("storage") == usable(chunks, names))
        assert two.reader.hashes("cpu") == set()
        two.ask(prompt(1))
        two.ask(prompt(2), cache_salt="salt")
        two.settles("storage", lambda: two.disk(folder))
        assert two.reader.hashes("storage") == held
        assert list(folder.glob("*.sqlite")) == [journal]


@pytest.fixture
def _fast_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "_PASS_SECONDS", 0.1)
    monkeypatch.setattr(presence, "_ASK_SECONDS", 0.3)
    monkeypatch.setattr(presence, "_DOWN_SECONDS", 1.0)


@pytest.mark.usefixtures("_fast_sweep")
def test_a_store_is_announced_and_what_it_loses_as_well(
    tmp_path: Path, remote: Remote, server: Store
) -> None:
    with replica(tmp_path / "one", remote=remote) as one:
        for number in range(4):
            one.ask(prompt(number))
        until(lambda: len(server.chunks()) == 12)
        one.settles("remote", lambda: one.remote(server))
        first, second, *_ = server.chunks()
        server.client().pexpire(first, 1)
        server.client().delete(second)
        one.settles("remote", lambda: one.remote(server))
        assert len(one.reader.hashes("remote")) == 10 * CHUNK // BLOCK
        server.client().flushall()
        one.settles("remote", set)
        one.ask(prompt(9))
        until(lambda: len(server.chunks()) == 3)
        one.settles("remote", lambda: one.remote(server))
        # Dynamo drops what is remote.
        assert one.reader.dynamo.hashes("external") == (set() if LOCALITY else one.remote(server))


@pytest.mark.usefixtures("_fast_sweep")
def test_nothing_of_a_store_that_is_gone_is_announced(
    tmp_path: Path, remote: Remote, server: Store
) -> None:
    with replica(tmp_path / "one", remote=remote) as one:
        one.ask(prompt(1))
        until(lambda: len(server.chunks()) == 3)
        one.settles("remote", lambda: one.remote(server))
        server.shut_down()
        try:
            one.settles("remote", set, 30)
        finally:
            server.start()
        one.settles("remote", lambda: one.remote(server), 30)
        assert len(one.remote(server)) == 3 * CHUNK // BLOCK
