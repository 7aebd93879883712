"""What a person deletes is gone from memory, disk and Redis; what is kept stays; quotas hold."""

from __future__ import annotations

import itertools
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kserve_lmcache.config.stores import Disk, Remote
from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.connector.inprocess.steering import LOCAL, InProcessSteering
from kserve_lmcache.identity.tag import EVERYTHING, NAME, Selection, Tag, digest
from kserve_lmcache.metrics.table import metric
from kserve_lmcache.tiers.changes import chunk_of
from kserve_lmcache.tiers.disk.journal import Journal, journal_path
from kserve_lmcache.tiers.guard.store import StoreError
from kserve_lmcache.tiers.redis.client import KEY_PREFIX
from kserve_lmcache.tiers.redis.store import COMMANDS
from tests.support.lmcache_engine import CHUNK, HEAD_SIZE, HEADS, LAYERS
from tests.support.replica import (
    CHUNKS,
    PATIENT,
    TOKENS,
    Replica,
    alike,
    pages,
    prompt,
    replica,
)
from tests.support.stores import Store, redis_cluster, redis_process
from tests.support.tiers import chunks, load, redis_tier, store_all
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("same_keys")

GIB = 2**30
CHUNK_BYTES = LAYERS * CHUNK * HEADS * 2 * HEAD_SIZE * 4
A, B = (Tag(digest(f"salt of {name}"), digest(name), "") for name in ("a", "b"))
A_SALTED = Tag(digest("another salt"), digest("a"), "")
A_ADAPTED = Tag(digest("salt of a"), digest("a"), digest("adapter"))
B_ADAPTED = Tag(digest("salt of b"), digest("b"), digest("adapter"))
TAGS = (Tag(), A, B, A_SALTED, A_ADAPTED, B_ADAPTED)
# The pages of each tag's prompt are random with this seed.
SEEDS = {tag: number for number, tag in enumerate(TAGS, 1)}
ALL = {LOCAL, "disk", "remote"}


@dataclass(frozen=True)
class Steered:
    """A replica with a steering, its directory and its Redis."""

    replica: Replica
    steering: InProcessSteering
    directory: Path
    store: Store

    def fill(self) -> None:
        """Store a prompt for each tag."""
        for tag, seed in SEEDS.items():
            self.replica.store(prompt(seed), pages(seed), str(tag))

    def places_of(self, tag: Tag) -> set[str]:
        """The places that hold bytes of a tag's KV, whatever their names are."""
        # Blocks of the pages lie in the chunks as they are.
        wanted = pages(SEEDS[tag])[0][1].flatten().numpy().tobytes()[:256]
        places = set()
        if wanted in self._memory():
            places.add(LOCAL)
        if any(wanted in path.read_bytes() for path in self.directory.iterdir()):
            places.add("disk")
        client = self.store.client()
        if any(wanted in (client.get(key) or b"") for key in client.keys("*")):
            places.add("remote")
        return places

    def _memory(self) -> bytes:
        """All memory of the local tier, used or not."""
        backend = self.replica.engine.storage_manager.local_cpu_backend
        memory = backend.memory_allocator.buffer
        return bytes(memory.numpy().tobytes())


@contextmanager
def steered(
    remote: Remote,
    server: Store,
    directory: Path,
    quotas: Mapping[str, int] | None = None,
    limits: TierLimits = PATIENT,
    local_gib: float = 0.05,
    **settings: Any,
) -> Iterator[Steered]:
    disk = Disk((str(directory),), GIB)
    with replica(remote, local_gib, limits, disk, **settings) as one:
        steering = InProcessSteering(
            one.engine, one.connectors, int(local_gib * GIB), "worker 0", quotas or {}
        )
        yield Steered(one, steering, directory, server)


@pytest.fixture
def full(remote: Remote, server: Store, tmp_path: Path) -> Iterator[Steered]:
    """One whose tiers have the prompts of all tags."""
    with steered(remote, server, tmp_path / "cache") as one:
        one.fill()
        for tag in TAGS:
            assert one.places_of(tag) == ALL
        yield one


def counted(answer: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {tier: told.get("chunks", told) for tier, told in answer.items()}


@pytest.mark.parametrize(
    ("selection", "gone"),
    [
        (Selection(tenant=digest("a")), {A, A_SALTED, A_ADAPTED}),
        (Selection(salt=A.salt), {A, A_ADAPTED}),
        (Selection(adapter=digest("adapter")), {A_ADAPTED, B_ADAPTED}),
        (Selection(tenant=digest("b"), adapter=""), {B}),
        (Selection(tenant=""), {Tag()}),
        (Selection(tenant=digest("nobody")), set()),
        (EVERYTHING, set(TAGS)),
    ],
)
def test_what_is_deleted_is_gone_everywhere_and_nothing_else(
    full: Steered, selection: Selection, gone: set[Tag]
) -> None:
    answer = full.steering.delete(selection)
    assert counted(answer) == dict.fromkeys(ALL, len(gone) * CHUNKS)
    for tag in TAGS:
        assert full.places_of(tag) == (set() if tag in gone else ALL), tag
        found, came, target = full.replica.load(prompt(SEEDS[tag]), str(tag))
        assert (found, came) == ((0, 0) if tag in gone else (TOKENS, TOKENS))
        assert tag in gone or alike(target, pages(SEEDS[tag]))
    assert counted(full.steering.delete(selection)) == dict.fromkeys(ALL, 0)


def test_a_prompt_is_deleted_for_its_tag_alone(full: Steered) -> None:
    full.replica.store(prompt(SEEDS[A]), pages(SEEDS[B]), str(B))
    answer = full.steering.delete_prompt(prompt(SEEDS[A]).tolist(), str(A))
    assert counted(answer) == dict.fromkeys(ALL, CHUNKS)
    assert full.places_of(A) == set()
    assert full.replica.load(prompt(SEEDS[A]), str(B))[:2] == (TOKENS, TOKENS)
    assert full.places_of(A_SALTED) == ALL


def test_what_was_stored_by_an_earlier_process_is_found(
    full: Steered, remote: Remote, server: Store
) -> None:
    """Names of files and keys tell the tenant: no index of a process does."""
    before = len([*full.directory.iterdir()])
    full.steering._local.erase([key for key, *_ in full.steering._local.chunks()], 5)
    answer = full.steering.delete(Selection(tenant=digest("a")))
    assert counted(answer) == {LOCAL: 0, "disk": 3 * CHUNKS, "remote": 3 * CHUNKS}
    assert len([*full.directory.iterdir()]) == before - 3 * CHUNKS


def journals(full: Steered) -> list[Journal]:
    """A journal of this model and one of another, which have the chunks of all tags."""
    made = [Journal(journal_path(full.directory, digest)) for digest in ("aa", "bb")]
    for tag in TAGS:
        names = [
            chunk_of(key.to_string()) for key in full.replica.keys(prompt(SEEDS[tag]), str(tag))
        ]
        for journal in made:
            journal.put([(name, "1", f"tokens of {tag}".encode()) for name in names])
    return made


def test_what_is_deleted_is_gone_from_all_journals_of_the_directory(full: Steered) -> None:
    made = journals(full)
    full.steering.delete(Selection(tenant=digest("a")))
    left = {str(Tag()), str(B), str(B_ADAPTED)}
    for journal in made:
        assert len(journal.names()) == 3 * CHUNKS
        assert {content.decode() for _, content in journal.rows()} == {
            f"tokens of {tag}" for tag in left
        }
    full.steering.delete_prompt(prompt(SEEDS[B]).tolist(), str(B))
    assert [len(journal.names()) for journal in made] == 2 * [2 * CHUNKS]
    full.steering.delete(EVERYTHING)
    assert [journal.names() for journal in made] == [[], []]
    for journal in made:
        journal.close()


def test_a_journal_that_cannot_be_written_is_told(full: Steered) -> None:
    made, _ = journals(full)
    other = sqlite3.connect(made.path)
    other.execute("BEGIN EXCLUSIVE")
    answer = full.steering.delete(Selection(tenant=digest("a")))
    assert "journal" in answer["disk"]["error"]
    assert counted(answer)[LOCAL] == 3 * CHUNKS
    other.close()
    assert counted(full.steering.delete(Selection(tenant=digest("a"))))["disk"] == 0
    assert len(made.names()) == 3 * CHUNKS


def test_what_others_keep_in_the_store_stays(full: Steered) -> None:
    client = full.store.client()
    others = {
        f"{KEY_PREFIX}other-model@1@0@ff@uint8@kserve%{A}": b"1",
        f"{KEY_PREFIX}replicas:x": b"2",
        "somebody's": b"3",
    }
    for key, value in others.items():
        client.set(key, value)
    full.steering.delete(EVERYTHING)
    assert {key.decode(): client.get(key) for key in client.keys("*")} == others


def test_the_usage_is_that_of_the_tiers(full: Steered) -> None:
    answer = full.steering.usage(EVERYTHING)
    assert set(answer) == ALL
    files = {path.name: path.stat().st_size for path in full.directory.iterdir()}
    client = full.store.client()
    sizes = {
        LOCAL: sum(size for _, size, _ in full.steering._local.chunks()),
        "disk": sum(files.values()),
        "remote": sum(client.strlen(key) for key in client.keys("*")),
    }
    for tier, told in answer.items():
        tags = {Tag(*row[:3]): row[3] for row in told["tags"]}
        assert tags == dict.fromkeys(TAGS, CHUNKS)
        assert sum(row[4] for row in told["tags"]) == sizes[tier]
        assert all(0 <= row[5] < 60 for row in told["tags"])
    mine = full.steering.usage(Selection(tenant=digest("b")))
    for told in mine.values():
        assert {Tag(*row[:3]) for row in told["tags"]} == {B, B_ADAPTED}


def test_a_chunk_that_is_stored_while_it_is_deleted_is_not_kept(full: Steered) -> None:
    """And one that is stored some time after is."""
    with full.steering._bars.up(lambda key: str(A) in key, lambda: 0.5):
        full.replica.engine.store(
            prompt(9),
            kvcaches=pages(9),
            slot_mapping=prompt(0),
            req_id="barred",
            request_configs={NAME: str(A)},
        )
        assert full.replica.load(prompt(9), str(A))[0] == 0
    time.sleep(0.6)
    full.replica.store(prompt(9), pages(9), str(A))
    assert full.replica.load(prompt(9), str(A))[0] == TOKENS


def test_nothing_survives_that_is_stored_and_loaded_meanwhile(full: Steered) -> None:
    """Writes are queued, in flight, and new ones come, until the deletion has been answered."""
    ended = threading.Event()

    def work() -> None:
        for number in itertools.count(100):
            if ended.is_set():
                return
            full.replica.engine.store(
                prompt(number),
                kvcaches=pages(1),
                slot_mapping=prompt(0),
                req_id="store",
                request_configs={NAME: str(A)},
            )
            full.replica.load(prompt(number - 3), str(A))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        time.sleep(0.5)
        for _ in range(3):
            answer = full.steering.delete(Selection(tenant=digest("a")))
            assert not any("error" in told for told in answer.values()), answer
    finally:
        ended.set()
        thread.join()
    until(lambda: full.replica.count("queue_bytes") == 0)
    for told in full.steering.usage(Selection(tenant=digest("a"))).values():
        assert told["tags"] == []
    assert full.places_of(A) == set()
    assert full.places_of(B) == ALL


def test_a_user_of_redis_who_may_not_list_is_told(tmp_path: Path) -> None:
    with redis_process(tmp_path) as server:
        rights = " ".join(f"+{command}" for command in COMMANDS)
        server.client().execute_command(
            f"ACL SETUSER less reset on >cache-password-9e ~kserve-lmcache:* {rights}"
        )
        remote = Remote(server.url, "test", username="less", password="cache-password-9e")
        with redis_tier(remote) as tier:
            store_all(tier, chunks("m@1@0@1@uint8"))
            with pytest.raises(StoreError, match="scan"):
                tier.steering.delete("m@1@0@", EVERYTHING)
            assert tier.steering.delete_keys(["m@1@0@1@uint8", "m@1@0@2@uint8"]) == 1


def test_a_store_that_is_gone_is_told_and_the_others_are_deleted(tmp_path: Path) -> None:
    with (
        redis_process(tmp_path) as server,
        steered(Remote(server.url, "test"), server, tmp_path / "cache") as one,
    ):
        one.replica.store(prompt(1), pages(1), str(A))
        server.kill()
        answer = one.steering.delete(Selection(tenant=digest("a")))
        assert answer["remote"]["error"]
        del answer["remote"]
        assert counted(answer) == {LOCAL: CHUNKS, "disk": CHUNKS}
        assert one.steering.usage(EVERYTHING)["remote"]["error"]


def test_a_cluster_lists_and_deletes_on_all_nodes(tmp_path: Path) -> None:
    keys = [f"m@1@0@{number:x}@uint8@kserve%{tag}" for number in range(60) for tag in (A, B)]
    limits = TierLimits(ttl=1000)
    with (
        redis_cluster(tmp_path) as cluster,
        redis_tier(Remote(cluster.url, "test"), limits) as tier,
    ):
        store_all(tier, chunks(*keys))
        found = tier.steering.usage("m@1@0@", EVERYTHING)
        assert {tag: usage.chunks for tag, usage in found.items()} == {A: 60, B: 60}
        assert tier.steering.usage("m@1@1@", EVERYTHING) == {}
        assert tier.steering.delete("m@1@0@", Selection(tenant=A.tenant)) == 60
        assert load(tier, keys[1:2]) != []
        assert load(tier, keys[:1]) == []


def test_a_prefetch_brings_a_prompt_into_the_local_tier(full: Steered) -> None:
    """Whichever tier has a chunk."""
    tokens, keys = prompt(SEEDS[A]), full.replica.keys(prompt(SEEDS[A]), str(A))
    full.steering._local.erase([key for key, *_ in full.steering._local.chunks()], 5)
    names = [key.to_string() for key in keys]
    full.replica.connectors["disk"].tier.steering.delete_keys(names[:2])
    full.replica.connectors["remote"].tier.steering.delete_keys(names[2:])
    answer = full.steering.prefetch([*tokens.tolist(), 1, 2], str(A))
    assert answer == {LOCAL: {"chunks": CHUNKS, "of": CHUNKS}}
    assert [key for key, *_ in full.steering._local.chunks()] != []
    found, came, target = full.replica.load(tokens, str(A))
    assert (found, came) == (TOKENS, TOKENS)
    assert alike(target, pages(SEEDS[A]))
    unknown = full.steering.prefetch(prompt(77).tolist(), str(A))
    assert unknown == {LOCAL: {"chunks": 0, "of": CHUNKS}}


def overfill(one: Steered, tag: Tag = B) -> None:
    """Store more than the local tier has room for."""
    before = {key for key, *_ in one.steering._local.chunks()}
    for number in range(1000, 4000):
        tokens = prompt(number)
        one.replica.engine.store(
            tokens,
            kvcaches=pages(1),
            slot_mapping=prompt(0),
            req_id="other",
            request_configs={NAME: str(tag)},
        )
        left = {key for key, *_ in one.steering._local.chunks()}
        if number > 1100 and len(left & before) < len(before):
            break
    for number in range(4000, 4200):
        one.replica.engine.store(
            prompt(number), kvcaches=pages(1), slot_mapping=prompt(0), req_id="other"
        )


def in_memory(one: Steered, tag: Tag) -> int:
    """The chunks of a tag's prompt in the local tier."""
    return sum(map(one.steering._local.has, one.replica.keys(prompt(SEEDS[tag]), str(tag))))


def test_a_pinned_prompt_survives_a_full_tier_until_its_time(
    remote: Remote, server: Store, tmp_path: Path
) -> None:
    limits = TierLimits(lookup=5, load=20, ttl=100)
    with steered(remote, server, tmp_path / "cache", limits=limits, local_gib=0.002) as one:
        for tag in (A, A_SALTED):
            one.replica.store(prompt(SEEDS[tag]), pages(SEEDS[tag]), str(tag))
        answer = one.steering.pin(prompt(SEEDS[A]).tolist(), str(A), 30)
        assert answer[LOCAL]["chunks"] == answer[LOCAL]["of"] == CHUNKS
        assert answer["disk"] == answer["remote"] == {"chunks": CHUNKS}
        overfill(one)
        assert in_memory(one, A) == CHUNKS
        assert in_memory(one, A_SALTED) == 0
        one.steering.pin(prompt(SEEDS[A]).tolist(), str(A), 0)
        overfill(one)
        assert in_memory(one, A) == 0


def test_a_pin_that_is_taken_back_leaves_those_before(full: Steered) -> None:
    tokens = prompt(SEEDS[A]).tolist()
    keys = full.replica.keys(prompt(SEEDS[A]), str(A))
    size = full.replica.engine.config.chunk_size
    full.steering.pin(tokens[:size], str(A), 30, "the first chunk")
    full.steering.pin(tokens, str(A), 30, "all")
    full.steering.unpin(tokens, str(A), "all")
    assert [*full.steering._pins._pins] == keys[:1]


def test_nothing_is_pinned_while_it_is_deleted(full: Steered) -> None:
    tokens = prompt(SEEDS[A]).tolist()
    with full.steering._bars.up(lambda key: True, lambda: 0.0):
        answer = full.steering.pin(tokens, str(A), 30)
    assert answer[LOCAL]["chunks"] == 0
    assert not full.steering._pins._pins


@pytest.mark.parametrize("policy", ["LRU", "LFU", "FIFO", "MRU"])
def test_a_chunk_that_goes_during_a_lookup_harms_no_later_one(
    remote: Remote, server: Store, tmp_path: Path, policy: str
) -> None:
    with steered(remote, server, tmp_path / "cache", cache_policy=policy) as one:
        for tag in (A, B):
            one.replica.store(prompt(SEEDS[tag]), pages(SEEDS[tag]), str(tag))
        backend = one.replica.engine.storage_manager.local_cpu_backend
        keys = one.replica.keys(prompt(SEEDS[A]), str(A))
        assert all(backend.contains(key, pin=True) for key in keys)
        for key in keys:
            backend.unpin(key)
        one.steering.delete(Selection(tenant=digest("a")))
        backend.touch_cache()
        assert backend.keys_in_request == []
        assert one.replica.load(prompt(SEEDS[B]), str(B))[:2] == (TOKENS, TOKENS)


def test_a_prefetch_keeps_nothing_without_a_local_tier(
    remote: Remote, server: Store, tmp_path: Path
) -> None:
    with steered(remote, server, tmp_path / "cache", local_cpu=False) as one:
        one.replica.store(prompt(SEEDS[A]), pages(SEEDS[A]), str(A))
        for tag in (A, A):
            told = one.steering.prefetch(prompt(SEEDS[tag]).tolist(), str(tag))
            assert told == {LOCAL: {"chunks": 0, "of": CHUNKS}}
        assert one.steering._local.chunks() == []


def test_a_pin_ends_by_itself(full: Steered) -> None:
    tokens = prompt(SEEDS[A]).tolist()
    full.steering.pin(tokens, str(A), 0.5)
    key = full.replica.keys(prompt(SEEDS[A]), str(A))[0]
    memory = full.steering._local.take(key)
    assert memory is not None
    assert not memory.can_evict
    memory.ref_count_down()
    until(lambda: memory.can_evict)


def test_what_is_pinned_can_be_deleted(full: Steered) -> None:
    full.steering.pin(prompt(SEEDS[A]).tolist(), str(A), 30)
    answer = full.steering.delete(Selection(tenant=digest("a")))
    assert counted(answer) == dict.fromkeys(ALL, 3 * CHUNKS)
    assert full.places_of(A) == set()


def test_a_pin_keeps_a_file_and_a_value_as_long(full: Steered) -> None:
    tokens, client = prompt(SEEDS[A]).tolist(), full.store.client()
    keys = [KEY_PREFIX + key.to_string() for key in full.replica.keys(prompt(SEEDS[A]), str(A))]
    for key in keys:
        client.expire(key, 60)
    full.steering.pin(tokens, str(A), 3600)
    assert all(3590 <= client.ttl(key) <= 3600 for key in keys)
    directory = full.replica.connectors["disk"]._directory  # type: ignore[attr-defined]
    while directory.evict(1):
        pass
    assert len([*full.directory.iterdir()]) == CHUNKS
    full.steering.pin(tokens, str(A), 0)
    while directory.evict(1):
        pass
    assert [*full.directory.iterdir()] == []


def test_no_more_than_half_of_the_tier_is_pinned(
    remote: Remote, server: Store, tmp_path: Path
) -> None:
    with steered(remote, server, tmp_path / "cache", local_gib=0.002) as one:
        pinned, most = 0, int(0.5 * 0.002 * GIB)
        for number in range(100):
            one.replica.store(prompt(number), pages(1), str(A))
            answer = one.steering.pin(prompt(number).tolist(), str(A), 30)
            if "is_full" in answer[LOCAL]:
                break
            pinned += answer[LOCAL]["bytes"]
        assert most - pinned < pinned / number
        assert answer[LOCAL] == {"chunks": 0, "bytes": 0, "of": CHUNKS, "is_full": True}
        one.replica.store(prompt(900), pages(2), str(B))
        assert one.replica.load(prompt(900), str(B))[:2] == (TOKENS, TOKENS)


def tenants_bytes(one: Steered, tier: str, tag: Tag) -> int:
    rows = one.steering.usage(Selection(tenant=tag.tenant))[tier]["tags"]
    return int(sum(row[4] for row in rows))


def test_a_tenant_fills_no_more_of_the_local_tier_than_its_quota(
    remote: Remote, server: Store, tmp_path: Path
) -> None:
    quota = 10 * CHUNK_BYTES
    evicted = metric("quota_evicted_total", tier=LOCAL)
    with steered(remote, server, tmp_path / "cache", {LOCAL: quota}) as one:
        before = evicted.value()
        for tag in (B, Tag()):
            one.replica.store(prompt(SEEDS[tag]), pages(SEEDS[tag]), str(tag))
        for number in range(100, 120):
            one.replica.store(prompt(number), pages(1), str(A if number % 2 else A_SALTED))
            assert tenants_bytes(one, LOCAL, A) <= quota
        assert tenants_bytes(one, LOCAL, A) > quota / 2
        assert evicted.value() > before
        # The newest is there, the oldest is not, and nobody else's went.
        local = one.steering._local
        assert all(map(local.has, one.replica.keys(prompt(119), str(A))))
        assert not any(map(local.has, one.replica.keys(prompt(100), str(A_SALTED))))
        assert in_memory(one, B) == in_memory(one, Tag()) == CHUNKS


def test_a_tenant_whose_chunks_are_pinned_is_counted_once_a_second(
    remote: Remote, server: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota = CHUNKS * (-(-CHUNK_BYTES // 4096) * 4096)  # LMCache allocates whole pages
    with steered(remote, server, tmp_path / "cache", {LOCAL: quota}) as one:
        one.replica.store(prompt(SEEDS[A]), pages(SEEDS[A]), str(A))
        one.steering.pin(prompt(SEEDS[A]).tolist(), str(A), 30)
        counts, local = [], one.steering._local
        chunks = local.chunks

        def counted_chunks() -> Any:
            counts.append(time.monotonic())
            return chunks()

        monkeypatch.setattr(local, "chunks", counted_chunks)
        began = time.monotonic()
        for number in range(100, 110):
            one.replica.store(prompt(number), pages(1), str(A))
        assert 1 <= len(counts) <= 1 + time.monotonic() - began
        assert in_memory(one, A) == CHUNKS
        assert tenants_bytes(one, LOCAL, A) == quota


def test_a_tenant_fills_no_more_of_redis_than_its_quota(
    remote: Remote, server: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its newest chunks are stored some time later."""
    monkeypatch.setattr("kserve_lmcache.tiers.guard.quota._PAUSE", 0.2)
    quota = 100 * CHUNK_BYTES
    numbers = iter(range(100, 10_000))

    def key_of(number: int) -> str:
        return KEY_PREFIX + one.replica.keys(prompt(number), str(A))[-1].to_string()

    with steered(remote, server, tmp_path / "cache", {"remote": quota}) as one:
        one.replica.store(prompt(SEEDS[B]), pages(SEEDS[B]), str(B))

        def stored() -> int:
            number = next(numbers)
            one.replica.engine.store(
                prompt(number),
                kvcaches=pages(1),
                slot_mapping=prompt(0),
                req_id="store",
                request_configs={NAME: str(A)},
            )
            return number

        first = stored()
        until(lambda: bool(server.client().exists(key_of(first))))

        def is_replaced() -> bool:
            newest = stored()
            time.sleep(0.05)
            assert tenants_bytes(one, "remote", A) <= quota
            there = [bool(server.client().exists(key_of(each))) for each in (first, newest)]
            return there == [False, True]

        until(is_replaced, 30)
        assert one.replica.count("quota_refused", "remote") > 0
        assert one.replica.count("quota_evicted", "remote") > 0
        (row,) = one.steering.usage(Selection(tenant=B.tenant))["remote"]["tags"]
        assert row[3] == CHUNKS
