from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from kserve_lmcache.config import directories
from kserve_lmcache.config.directories import Directory, Fault, examine, fault_of, of_server
from kserve_lmcache.errors import DirectoryError

HOME = {"HOME": "/home/of", "TMPDIR": "/var/of"}


def paths(**environ: str) -> dict[str, Path]:
    return {each.variable: each.path for each in of_server(environ, compiles=True)}


def test_the_caches_are_below_the_home_and_the_temporary_directory() -> None:
    assert paths(**HOME) == {
        "TMPDIR": Path("/var/of"),
        "": Path("/dev/shm"),  # noqa: S108
        "VLLM_CACHE_ROOT": Path("/home/of/.cache/vllm"),
        "TORCHINDUCTOR_CACHE_DIR": Path("/var/of/torchinductor_USER"),
        "TRITON_CACHE_DIR": Path("/home/of/.triton/cache"),
    }


@pytest.mark.parametrize(
    "variable",
    ["VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "PROMETHEUS_MULTIPROC_DIR"],
)
def test_a_variable_of_the_user_counts(variable: str) -> None:
    assert paths(**HOME, **{variable: "/of/the/user"})[variable] == Path("/of/the/user")
    (found,) = (e for e in of_server({variable: "/x"}, compiles=True) if e.variable == variable)
    assert found.source == variable


def test_the_defaults_are_those_of_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.runtime import cache_dir_utils
    from vllm import envs

    monkeypatch.delenv("VLLM_CACHE_ROOT", raising=False)
    found = paths(**dict(os.environ))
    assert found["VLLM_CACHE_ROOT"] == Path(envs.VLLM_CACHE_ROOT)
    torch = Path(cache_dir_utils.default_cache_dir())
    assert found["TORCHINDUCTOR_CACHE_DIR"].parent == torch.parent


def test_code_is_loaded_from_the_caches_only_where_it_is_compiled() -> None:
    for compiles in (True, False):
        executing = {e.variable for e in of_server(HOME, compiles) if e.executes}
        assert ("TRITON_CACHE_DIR" in executing) is compiles


def test_a_directory_that_does_not_exist_is_judged_by_its_parent(tmp_path: Path) -> None:
    assert fault_of(Directory("x", tmp_path / "a/b", executes=True, least_free=1)) is None
    (tmp_path / "a").touch()
    found = fault_of(Directory("x", tmp_path / "a/b"))
    assert found is not None
    assert (found.fault, found.place) == (Fault.NO_DIRECTORY, tmp_path / "a")


def test_the_directories_of_one_place_are_one_finding(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    one, two = (Directory(n, tmp_path / "file" / n, f"{n}_DIR", n) for n in ("one", "two"))
    fine = Directory("fine", tmp_path)
    (finding,) = examine([one, fine, two])
    assert finding.message == f"{tmp_path / 'file'} is no directory (needed for one, two)"
    assert finding.fix.endswith(", or set one_DIR, two_DIR to a directory on another volume.")
    with pytest.raises(DirectoryError) as raised:
        directories.check([one, fine, two])
    assert str(raised.value).startswith(
        "1 problem with the directories that the server writes to:\n  - one, two: "
    )


def test_a_directory_below_a_place_with_the_same_fault_is_no_second_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "ab").mkdir()
    monkeypatch.setattr(directories, "execute_error", lambda place: OSError())
    places = [tmp_path / name for name in ("a/b", "a", "ab")]
    found = examine([Directory(each.name, each, executes=True) for each in places])
    assert [each.place for each in found] == [tmp_path / "a", tmp_path / "ab"]
    assert [each.purpose for each in found[0].affected] == ["a", "b"]


@pytest.mark.parametrize(("blocks", "fault"), [(100, Fault.FULL), (0, None)])
def test_a_file_system_that_reports_no_size_is_not_full(
    blocks: int, fault: Fault | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = SimpleNamespace(f_blocks=blocks, f_bavail=0, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda path: state)
    found = fault_of(Directory("x", tmp_path, least_free=1))
    assert (found and found.fault) == fault
