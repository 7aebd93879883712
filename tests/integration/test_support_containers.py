"""What the container tests say where there is no engine, and what they tell a build."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.support.containers import engine, running_engine
from tests.support.containers.package_sources import build_arguments
from tests.support.containers.run import words_of


def client(folder: Path, version: str, *more: str) -> Path:
    """A ``docker`` of that version in a folder, which finds no engine."""
    folder.mkdir()
    command = folder / "docker"
    lines = [f'[ "$1" = --version ] && {{ echo "Docker version {version}, build 1"; exit 0; }}']
    command.write_text("\n".join(["#!/bin/sh", *lines, *more, "exit 1", ""]))
    command.chmod(0o755)
    return command


BUILDX = '[ "$1" = buildx ] && { echo github.com/docker/buildx; exit 0; }'


def test_a_client_that_can_build_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = client(tmp_path / "new", "28.2.2")
    old = client(tmp_path / "old", "20.10.24+dfsg1")
    plugged = client(tmp_path / "plugged", "28.2.2", BUILDX)
    monkeypatch.setattr(engine, "_PATH", f"{new.parent}:{old.parent}")
    assert engine._client() == str(old)
    monkeypatch.setattr(engine, "_PATH", f"{new.parent}:{plugged.parent}")
    assert engine._client() == str(plugged)
    monkeypatch.setattr(engine, "_PATH", str(new.parent))
    with pytest.raises(AssertionError, match=r"has no buildx\. Install Docker; on Debian: apt-get"):
        engine._client()


def test_no_engine_fails_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_PATH", str(client(tmp_path / "bin", "20.10.24").parent))
    with (
        pytest.raises(AssertionError, match=r"there is no dockerd\. Install Docker; on Debian"),
        running_engine(tmp_path),
    ):
        pass


def test_a_build_finds_the_packages_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "index/simple/one").mkdir(parents=True)
    (tmp_path / "index/one.whl").write_text("a wheel")
    (tmp_path / "index/simple/one/index.html").write_text('<a href="../../one.whl">one</a>')
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    elsewhere = "https://index.example/simple"
    index = f"file://{tmp_path}/index/simple {elsewhere}"
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", index)
    with build_arguments() as arguments:
        values = dict(word.split("=", 1) for word in arguments[1::2])
        assert set(arguments[::2]) == {"--build-arg"}
        links, (simple, other) = values["PIP_FIND_LINKS"], values["PIP_EXTRA_INDEX_URL"].split()
        assert read(f"{links}one.whl") == "a wheel"
        assert "one.whl" in read(f"{simple}one/")
        assert read(f"{simple.removesuffix('simple/')}one.whl") == "a wheel"
        assert other == elsewhere


def read(url: str) -> str:
    return httpx.get(url, timeout=5).raise_for_status().text


def test_the_words_of_a_line() -> None:
    assert words_of("docker run --memory 5g \\\n  image \\\n  --flag='a b'") == [
        *("--memory", "5g", "image", "--flag=a b"),
    ]
    with pytest.raises(AssertionError):
        words_of("docker build .")
