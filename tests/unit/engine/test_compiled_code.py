"""Compiled code that outlives a server: the archive, what it is told apart by, and the caches."""

from __future__ import annotations

import logging
import os
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kserve_lmcache.compat import vllm
from kserve_lmcache.engine.compiled_code import Keeper, archive, key
from kserve_lmcache.engine.compiled_code.keeper import CACHES

MODEL = "/mnt/models@"
FILES = {"vllm/a/cache.py": b"{}", "torch/ab/x.so": bytes(range(256)) * 64, "triton/k": b""}


@pytest.fixture(autouse=True)
def _temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """The directory that outlives servers."""
    return tmp_path / "kept"


def start(kept: Path, name: str = "llama", model: str = MODEL, **given: str) -> Keeper:
    """What a server has before its engine starts."""
    keeper = Keeper(kept, model, name)
    environ = dict(given)
    keeper.redirect(environ, given)
    return keeper


def compile_into(keeper: Keeper, files: dict[str, bytes] = FILES) -> None:
    for name, content in files.items():
        path = keeper.working_directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def held(keeper: Keeper) -> dict[str, bytes]:
    root = keeper.working_directory
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def archived(kept: Path) -> Iterator[Path]:
    """The archive of a server that has ended."""
    keeper = start(kept)
    compile_into(keeper)
    keeper.save()
    keeper.close()
    assert keeper.archive.exists()
    return keeper.archive


def test_the_next_server_starts_with_what_the_last_one_compiled(archived: Path, kept: Path) -> None:
    keeper = start(kept)
    assert held(keeper) == FILES


def test_every_cache_is_in_the_working_directory_of_its_server(kept: Path) -> None:
    keeper = Keeper(kept, MODEL, "llama")
    environ: dict[str, str] = {}
    keeper.redirect(environ, {})
    assert environ == {n: str(keeper.working_directory / p) for n, p in CACHES.items()}


@pytest.mark.parametrize("variable", CACHES)
def test_a_cache_that_the_user_has_put_somewhere_stays(variable: str, kept: Path) -> None:
    keeper = Keeper(kept, MODEL, "llama")
    # torch names its own cache when it is imported, which is no wish of the user.
    environ = {"TORCHINDUCTOR_CACHE_DIR": "/torchs/own", variable: "/the/users"}
    keeper.redirect(environ, {variable: "/the/users"})
    assert environ.pop(variable) == "/the/users"
    assert len(environ) == len(CACHES) - 1
    assert all(path.startswith(str(keeper.working_directory)) for path in environ.values())


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data[:9000] + bytes([data[9000] ^ 1]) + data[9001:],
        lambda data: b"",
        lambda data: random.Random(0).randbytes(len(data)),
        lambda data: data.replace(archive.MAGIC, archive.MAGIC.replace(b"1", b"0"), 1),
    ],
    ids=["half", "last byte", "one byte", "empty", "random", "other version"],
)
def test_damage_costs_the_time_alone(
    damage: object, archived: Path, kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert callable(damage)
    archived.write_bytes(damage(archived.read_bytes()))
    keeper = start(kept)
    assert held(keeper) == {}
    assert "Compiled code of an earlier start is not used" in caplog.text
    compile_into(keeper)
    keeper.save()
    keeper.close()
    assert held(start(kept)) == FILES


def test_an_archive_unpacks_nothing_outside_its_directory(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("x")
    (tmp_path / "in").mkdir()
    archive.write(tmp_path / "a", tmp_path / "in", ["../outside"])
    (tmp_path / "outside").unlink()
    (tmp_path / "to").mkdir()
    with pytest.raises(archive.DamagedArchiveError):
        archive.read(tmp_path / "a", tmp_path / "to")
    assert not (tmp_path / "outside").exists()


def test_what_an_ended_server_left_in_its_working_directory_is_not_used(kept: Path) -> None:
    keeper = start(kept)
    compile_into(keeper)
    os.close(keeper._lock)  # killed
    again = start(kept)
    assert again.working_directory == keeper.working_directory
    assert held(again) == {}


def test_two_servers_never_share_a_working_directory(archived: Path, kept: Path) -> None:
    one, other = start(kept), start(kept)
    assert one.working_directory != other.working_directory
    assert held(one) == FILES  # the first has the directory of the last server


def test_writers_at_the_same_time_leave_one_of_their_archives_whole(tmp_path: Path) -> None:
    contents = {}
    for number in range(4):
        folder = tmp_path / f"from-{number}"
        folder.mkdir()
        contents[number] = random.Random(number).randbytes(100_000)
        (folder / "code").write_bytes(contents[number])
    path = tmp_path / "kept" / "compiled"
    until = time.monotonic() + 1

    def write(number: int) -> None:
        while time.monotonic() < until:
            archive.write(path, tmp_path / f"from-{number}", ["code"])

    writers = [threading.Thread(target=write, args=(number,)) for number in contents]
    for writer in writers:
        writer.start()
    read = 0
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            to = tmp_path / f"to-{read}"
            to.mkdir()
            archive.read(path, to)
            assert (to / "code").read_bytes() in contents.values()
            read += 1
    assert read > 3
    assert [each.name for each in path.parent.iterdir()] == ["compiled"]


def test_nothing_new_writes_nothing(archived: Path, kept: Path) -> None:
    before = archived.stat().st_mtime_ns
    keeper = start(kept)
    keeper.save()
    assert archived.stat().st_mtime_ns == before
    compile_into(keeper, {"torch/new": b"new"})
    keeper.save()
    keeper.close()
    assert held(start(kept)) == {**FILES, "torch/new": b"new"}


def test_an_archive_that_has_grown_too_large_is_replaced(archived: Path, kept: Path) -> None:
    keeper = Keeper(kept, MODEL, "llama", max_bytes=1000)
    keeper.redirect({}, {})
    assert held(keeper) == {}
    compile_into(keeper, {"torch/new": b"new"})
    keeper.save()
    keeper.close()
    assert held(start(kept)) == {"torch/new": b"new"}


def test_locks_and_half_files_are_not_kept(kept: Path) -> None:
    keeper = start(kept)
    compile_into(keeper, {"torch/locks/a.lock": b"", "vllm/model.7.tmp": b"half", "torch/a": b"a"})
    keeper.save()
    keeper.close()
    assert held(start(kept)) == {"torch/a": b"a"}


def test_a_file_that_vanishes_leaves_the_old_archive(
    archived: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = archived.read_bytes()
    keeper = start(kept)
    files = {*keeper._files(), ("torch/vanished", 1)}
    monkeypatch.setattr(keeper, "_files", lambda: files)
    keeper.save()
    assert archived.read_bytes() == before
    assert "Compiled code is not kept" in caplog.text
    assert [each.name for each in archived.parent.iterdir()] == [archived.name]


def test_what_killed_writers_left_is_removed(archived: Path, kept: Path) -> None:
    old, new = (archived.parent / f"{archive.TEMPORARY}{name}" for name in ("old", "new"))
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    keeper = start(kept)
    compile_into(keeper, {"torch/new": b"new"})
    keeper.save()
    assert not old.exists()
    assert new.exists()  # somebody may be writing it


def test_a_directory_that_cannot_be_written_is_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    keeper = start(Path("/proc/self/kept"))
    compile_into(keeper)
    keeper.save()
    (record,) = (r for r in caplog.records if r.levelno == logging.WARNING)
    assert "compile_cache_dir" in record.message
    assert "the next start compiles again" in record.message


def test_a_working_directory_of_another_user_is_refused(kept: Path) -> None:
    base = Path(tempfile.gettempdir()) / f"kserve-lmcache-compiled-{os.getuid()}"
    base.mkdir()
    base.chmod(0o777)
    with pytest.raises(PermissionError, match="others may write there"):
        Keeper(kept, MODEL, "llama")


def test_models_and_versions_have_directories_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "proc/cpuinfo"
    cpuinfo.parent.mkdir()
    cpuinfo.write_text("flags\t: avx2 avx512f\n\nflags\t: other\n")

    def directory(model: str = MODEL, working: str = "/tmp/0") -> Path:  # noqa: S108
        return key.directory_of(model, "../a b", Path(working), tmp_path)

    first = directory()
    assert first == directory()
    assert first.parts[0] == f"vllm-{vllm.release()}"
    assert first.parts[1].startswith("-a-b-")
    found = {first, directory(model="/mnt/models@main"), directory(working="/var/0")}
    cpuinfo.write_text("flags\t: avx2\n")
    found.add(directory())
    gpu = tmp_path / "proc/driver/nvidia/gpus/0/information"
    gpu.parent.mkdir(parents=True)
    gpu.write_text("Model: \t\t NVIDIA H100\nIRQ: 1\n")
    found.add(directory())
    monkeypatch.setattr(key, "_torch", lambda: "9.9")
    found.add(directory())
    monkeypatch.setattr(vllm, "release", lambda: "9.9.9")
    found.add(directory())
    assert len(found) == 7
