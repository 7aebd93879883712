"""The disk tier's store and directory: what they keep, evict and do on a disk that fails."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.tiers.disk import directory as disk_directory
from kserve_lmcache.tiers.disk import store as disk_store
from kserve_lmcache.tiers.disk.directory import DiskDirectory, file_name
from kserve_lmcache.tiers.disk.store import DiskStore
from kserve_lmcache.tiers.guard import writer
from kserve_lmcache.tiers.guard.codec import encode_header
from kserve_lmcache.tiers.guard.store import Entry, StoreError, StoreFullError
from tests.support.tiers import LAYOUT, SIZE, chunks, disk_tier, load, read, store, store_all
from tests.support.waiting import until

BLOCK = 4096
KEY = "namespace@1@0@12ab@bfloat16@tag%a/b:c"
LONG = "n" * 300 + KEY


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[DiskDirectory]:
    directory = DiskDirectory(tmp_path / "cache", 10 * BLOCK)
    until(directory.is_scanned.is_set)
    yield directory
    directory.close()


def client(directory: DiskDirectory, name: str = "write") -> DiskStore:
    return DiskStore(directory, name)


def entry(key: str, size: int = SIZE) -> Entry:
    payload = chunks(key, size=size)[key]
    return Entry(key, encode_header(key, LAYOUT, payload), payload)


def content(value: Entry) -> bytes:
    return value.header + bytes(value.payload)


def files(path: Path) -> set[str]:
    return {each.name for each in path.iterdir()}


def fail(patch: pytest.MonkeyPatch, where: str, number: int, times: int = 1000) -> list[str]:
    """Let a call of ``os`` fail some times; what it was called with."""
    real: Callable[..., Any] = getattr(os, where)
    calls: list[str] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(str(args[0]))
        if len(calls) <= times:
            raise OSError(number, os.strerror(number))
        return real(*args, **kwargs)

    patch.setattr(os, where, call)
    return calls


def test_every_file_system_takes_the_file_names() -> None:
    names = {file_name(key) for key in (KEY, LONG, "", "../../etc", KEY + " ")}
    assert len(names) == 5
    assert all(len(name) == 35 and "/" not in name for name in names)
    assert file_name(KEY) == "bebb14a1fda8cee0872cee69f4bdf841.kv"  # or a restart finds nothing


def test_written_values_are_read_and_private(directory: DiskDirectory) -> None:
    one, other = entry(KEY), entry(LONG)
    client(directory).ping()
    client(directory).write([one, other])
    assert files(directory.path) == {file_name(KEY), file_name(LONG)}
    assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(each.stat().st_mode) for each in directory.path.iterdir()} == {0o600}
    values = read(client(directory, "load"), [KEY, "missing", LONG])
    assert values == [content(one), None, content(other)]
    assert client(directory, "write").sizes([KEY, "missing", LONG]) == [one.size, 0, other.size]
    client(directory).delete([KEY, "missing"])
    assert files(directory.path) == {file_name(LONG)}
    assert directory.index.occupied == BLOCK * -(-other.size // BLOCK)


def test_a_lookup_reads_the_index_only(
    directory: DiskDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    client(directory).ping()
    client(directory).write([entry(key) for key in "abc"])
    lookup = client(directory, "lookup")
    with monkeypatch.context() as patch:
        looked = fail(patch, "lstat", errno.EIO)
        assert 0 not in lookup.sizes(["a", "b", "c"])
        assert looked == []
        with pytest.raises(StoreError):
            lookup.sizes(["a", "x"])
    # What another process wrote is found, up to the first that is missing.
    elsewhere = DiskDirectory(directory.path, 10 * BLOCK)
    until(elsewhere.is_scanned.is_set)
    client(elsewhere).write([entry("d"), entry("f")])
    elsewhere.close()
    sizes = lookup.sizes(["a", "d", "e", "f"])
    assert [bool(size) for size in sizes] == [True, True, False, False]


def test_the_least_recently_used_files_make_room(directory: DiskDirectory) -> None:
    client(directory).ping()
    one = entry("0").size
    room = directory.max_bytes // (BLOCK * -(-one // BLOCK))
    keys = [f"k{number}" for number in range(room)]
    client(directory).write([entry(key) for key in keys])
    client(directory).keep(keys[::-1])  # of these, the first comes to be the last
    client(directory, "lookup").sizes(keys[:1])  # about to be read
    client(directory).write([entry("new"), entry("newer")])
    assert files(directory.path) == {
        file_name(key) for key in ({*keys, "new", "newer"} - {*keys[1:3]})
    }
    assert directory.index.occupied <= directory.max_bytes
    assert directory.evicted == 2


def test_a_prompts_first_chunk_is_evicted_last(directory: DiskDirectory) -> None:
    client(directory).ping()
    client(directory).write([entry(key) for key in "abc"])
    order = []
    while (oldest := directory.index.take_oldest()) is not None:
        order.append(oldest[0])
    assert order == [file_name(key) for key in "cba"]


def test_a_chunk_larger_than_the_bound_is_refused(tmp_path: Path) -> None:
    directory = DiskDirectory(tmp_path, BLOCK)
    client(directory).write([entry("small", size=100)])
    with pytest.raises(StoreFullError, match="exceeds max_local_disk_size"):
        client(directory).write([entry("large", size=2 * BLOCK)])
    assert files(tmp_path) == {file_name("small")}
    directory.close()


def test_a_restart_keeps_the_cache_and_the_order_of_use(tmp_path: Path) -> None:
    values = chunks(*"abcdef")
    with disk_tier(tmp_path) as one:
        store_all(one.tier, values)
        assert load(one.tier, ["b", "c"]) == [values["b"], values["c"]]
        until(lambda: one.path("b").stat().st_mtime_ns > one.path("a").stat().st_mtime_ns)
        until(lambda: one.path("c").stat().st_mtime_ns > one.path("a").stat().st_mtime_ns)
    with disk_tier(tmp_path, 2 * BLOCK) as other:  # which has less room
        until(lambda: other.count("used_bytes") <= 2 * BLOCK)
        left = 2 * BLOCK // (BLOCK * -(-other.path("b").stat().st_size // BLOCK))
        assert files(tmp_path) == {file_name(key) for key in ["b", "c"][:left]}
        assert other.tier.lookup(["b"]) == 1
        assert load(other.tier, ["b"]) == [values["b"]]


def test_a_start_does_not_wait_for_the_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with disk_tier(tmp_path) as one:
        store_all(one.tier, chunks("a"))
    release = threading.Event()
    monkeypatch.setattr(DiskDirectory, "_scan", lambda self: release.wait(20))
    monkeypatch.setattr(disk_store, "_SCAN_SECONDS", 0.01)
    with disk_tier(tmp_path, wait=False) as other:
        until(lambda: bool(other.tier.report()["up"]))
        assert other.tier.lookup(["a"]) == 1
        assert load(other.tier, ["a"]) == [*chunks("a").values()]
        # The bound would not hold.
        store(other.tier, chunks("b"))
        until(lambda: other.count("dropped_full") == 1)
        release.set()


def test_leftovers_are_removed_and_other_files_stay(tmp_path: Path) -> None:
    name = file_name("a")
    old, new = tmp_path / f"{name}.abc_1.tmp", tmp_path / f"{name}.abc_2.tmp"
    strangers = [tmp_path / "notes.txt", tmp_path / "x.tmp", tmp_path / f"{name}.bak"]
    for path in (old, new, *strangers):
        path.write_bytes(b"content")
        os.utime(path, (0, 0))
    os.utime(new)
    link, inner = tmp_path / file_name("link"), tmp_path / file_name("directory")
    link.symlink_to("/etc/passwd")
    inner.mkdir()
    with disk_tier(tmp_path, max_bytes=BLOCK) as tier:
        assert tier.count("files") == 0
        assert not old.exists()
        assert all(path.exists() for path in (new, link, inner, *strangers))
        assert tier.tier.lookup(["link"]) == tier.tier.lookup(["directory"]) == 0


def test_scans_see_what_other_processes_write_and_remove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_directory, "_PAUSE", 0.05)
    monkeypatch.setattr(disk_directory, "_MIN_PAUSE", 0.01)
    with disk_tier(tmp_path, 20 * BLOCK) as one, disk_tier(tmp_path, 20 * BLOCK) as other:
        store_all(one.tier, chunks(*(f"1-{number}" for number in range(9))))
        until(lambda: other.count("files") == 9)
        store_all(other.tier, chunks(*(f"2-{number}" for number in range(20))))
        until(lambda: one.count("used_bytes") == other.count("used_bytes"))
        assert one.count("used_bytes") <= 20 * BLOCK
        assert one.count("files") == len(files(tmp_path))
        for path in tmp_path.iterdir():
            path.unlink()
        until(lambda: one.count("files") == other.count("files") == 0)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses_writes_is_still_read(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = chunks("a", "b", "c")
    monkeypatch.setattr(writer, "_FIRST_PAUSE", 0.05)
    with disk_tier(tmp_path) as tier:
        store_all(tier.tier, {"a": values["a"]})
        monkeypatch.setattr(DiskDirectory, "evict", lambda self, size: False)
        with monkeypatch.context() as patch:
            fail(patch, "write", number)
            store(tier.tier, {"b": values["b"]})
            until(lambda: tier.count("dropped_full") == 1)
            assert files(tmp_path) == {file_name("a")}  # no half-written file
            assert tier.tier.report()["up"]
            assert load(tier.tier, ["a"]) == [values["a"]]
        until(lambda: bool(store_all(tier.tier, {"c": values["c"]}) or tier.path("c").exists()))
        assert tier.count("exceptions") == tier.count("opened") == 0
        assert tier.tier.report()["queue_bytes"] == 0


def test_a_disk_full_of_other_things_keeps_the_newest(
    directory: DiskDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    client(directory).ping()
    for key in "abc":
        client(directory).write([entry(key)])
    with monkeypatch.context() as patch:
        fail(patch, "write", errno.ENOSPC, times=2)
        client(directory).write([entry("d")])
    assert file_name("a") not in files(directory.path)
    assert file_name("d") in files(directory.path)
    with monkeypatch.context() as patch:
        fail(patch, "write", errno.ENOSPC)
        with pytest.raises(StoreFullError, match="No space left"):
            client(directory).write([entry("e")])


def test_short_writes_go_on(directory: DiskDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    client(directory).ping()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, view: real(handle, view[:7]))
        client(directory).write([entry("a")])
    with monkeypatch.context() as patch:
        readv = os.readv
        patch.setattr(os, "readv", lambda handle, views: readv(handle, [views[0][:100]]))
        assert read(client(directory, "load"), ["a"]) == [content(entry("a"))]


def test_a_damaged_sector_is_a_corrupt_chunk_and_does_not_open_the_breaker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = chunks("a", "b")
    with disk_tier(tmp_path) as tier:
        store_all(tier.tier, values)
        with monkeypatch.context() as patch:
            fail(patch, "readv", errno.EIO, times=1)
            assert load(tier.tier, ["a", "b"]) == []
        assert tier.count("chunks_corrupt") == 1
        until(lambda: not tier.path("a").exists())
        assert tier.tier.lookup(["a"]) == 0
        store_all(tier.tier, {"a": values["a"]})
        assert load(tier.tier, ["a", "b"]) == [*values.values()]
        assert tier.count("failures") == 0


@pytest.mark.parametrize("larger", ["than a chunk", "than it says"])
def test_a_file_that_is_too_large_is_a_corrupt_chunk(tmp_path: Path, larger: str) -> None:
    with disk_tier(tmp_path) as tier:
        store_all(tier.tier, chunks("a", "b"))
        value = entry("a", 2 * SIZE) if larger == "than a chunk" else entry("a")
        tier.path("a").write_bytes(content(value) + bytes(SIZE * (larger == "than it says")))
        assert load(tier.tier, ["a", "b"]) == []
        assert tier.count("chunks_corrupt") == 1
        until(lambda: not tier.path("a").exists())


def test_a_disk_that_fails_altogether_is_given_up_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with disk_tier(tmp_path) as tier:
        store_all(tier.tier, chunks("a"))
        with monkeypatch.context() as patch:
            fail(patch, "open", errno.ENXIO)
            fail(patch, "scandir", errno.ENXIO)
            for _ in range(3):
                assert load(tier.tier, ["a"]) == []
            assert not tier.tier.report()["up"]
            assert tier.tier.lookup(["a"]) == 0
        until(lambda: tier.tier.lookup(["a"]) == 1)
        assert tier.count("exceptions") == 0


def test_a_removed_directory_is_created_again(tmp_path: Path) -> None:
    values = chunks(*"abc")
    path = tmp_path / "cache"
    with disk_tier(path) as tier:
        store_all(tier.tier, values)
        for each in path.iterdir():
            each.unlink()
        path.rmdir()
        assert load(tier.tier, ["a", "b"]) == []
        assert tier.count("chunks_missing") == 1
        # One is missing, so all are looked at.
        until(lambda: tier.count("files") == 0)
        store_all(tier.tier, values)
        assert tier.tier.lookup([*values]) == 3
        assert load(tier.tier, [*values]) == [*values.values()]
        assert tier.count("failures") == 0


def test_a_disk_that_hangs_delays_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    real = os.readv
    with disk_tier(tmp_path, limits=TierLimits(lookup=0.5, load=0.1)) as tier:
        store_all(tier.tier, chunks("a", "b"))
        with monkeypatch.context() as patch:

            def hang(*args: Any) -> int:
                release.wait(20)
                return real(*args)

            patch.setattr(os, "readv", hang)
            assert load(tier.tier, ["a", "b"]) == []
            release.set()
        until(lambda: load(tier.tier, ["a", "b"]) == [*chunks("a", "b").values()])


def test_a_file_that_cannot_be_one_of_ours_is_not_read(tmp_path: Path) -> None:
    with disk_tier(tmp_path) as tier:
        store_all(tier.tier, chunks("a"))
        os.truncate(tier.path("a"), 1 << 40)
        assert load(tier.tier, ["a"]) == []
        assert tier.count("chunks_corrupt") == 1
        until(lambda: not tier.path("a").exists())
