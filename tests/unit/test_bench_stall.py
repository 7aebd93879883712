"""How ``benchmarks/stall.py`` goes through its links, and what it makes of the figures."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from benchmarks import stall
from benchmarks.stall import Link, measured

LINKS = [
    Link(rate=100e6),
    Link(),
    Link(is_lookup=True),
    Link(delay=0.04, is_lookup=True),
]


class Scene:
    """Stands for the servers, the store and the relays; it notes what happens."""

    def __init__(self) -> None:
        self.up: list[str] = []
        self.most = 0
        self.asked: dict[str, list[list[int]]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def servers(self, directory: Path) -> Iterator[list[str]]:
        mine: list[str] = []
        yield mine
        self.up = [name for name in self.up if name not in mine]

    def ours(self, servers: list[str], name: str, store: str) -> str:
        time.sleep(0.05)
        with self._lock:
            servers.append(name)
            self.up.append(name)
            self.most = max(self.most, len(self.up))
        return f"{name} by {store}"

    @contextmanager
    def relayed(self, store: str, link: Link) -> Iterator[str]:
        yield f"{link} to {store}"

    async def store_all(self, url: str, prompts: list[list[int]], store: str) -> None:
        self.asked[url] = prompts

    async def measure(self, url: str, prompts: list[list[int]], streams: int) -> Any:
        assert url.partition(" ")[0] in self.up
        self.asked[url] = prompts
        number = len(self.asked) - 2
        return [1.0 + number, 2.0 + number, 9.0], 0.1, [0.2, 0.3 + number, 0.25]


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    scene = Scene()
    for name in ("relayed", "store_all", "measure"):
        monkeypatch.setattr(stall, name, getattr(scene, name))
    for name in ("servers", "ours"):
        monkeypatch.setattr(stall.contenders, name, getattr(scene, name))
    monkeypatch.setattr(stall.contenders, "redis", lambda servers: "store")
    return scene


@pytest.mark.parametrize(("at_once", "most"), [(1, 1), (3, 3), (8, 4)])
def test_every_link_has_a_server_and_so_many_run_at_once(
    scene: Scene, tmp_path: Path, at_once: int, most: int
) -> None:
    rows = list(measured(LINKS, 3, 2, tmp_path, at_once))
    assert [row.link for row in rows] == LINKS
    assert scene.most == most
    assert scene.up == []
    writer, *readers = scene.asked
    assert writer == "writer by store"
    assert readers == [f"reader-{number} by {link} to store" for number, link in enumerate(LINKS)]


def test_goals_are_of_the_link(scene: Scene, tmp_path: Path) -> None:
    rows = list(measured(LINKS, 3, 2, tmp_path))
    assert [row.load for row in rows] == [2.0, 3.0, 4.0, 5.0]
    assert [row.longest for row in rows] == pytest.approx([0.3, 1.3, 2.3, 3.3])
    quiet = 0.1
    undelayed = 2.3
    expected = [quiet + 0.15 * 2, quiet + 0.15 * 3, undelayed + 0.01, undelayed + 0.01]
    assert [row.goal for row in rows] == pytest.approx(expected)


def test_loads_are_of_what_is_stored_and_lookups_of_what_is_not(
    scene: Scene, tmp_path: Path
) -> None:
    list(measured(LINKS, 3, 2, tmp_path))
    stored, *loaded_and_new = scene.asked.values()
    loaded, again, new, newer = loaded_and_new
    assert stored == loaded == again
    firsts = [each[0] for prompts in (stored, new, newer) for each in prompts]
    # A server of one link stores what it computes, and another one would find it.
    assert len(set(firsts)) == len(firsts) == 9
    assert {len(each) for each in stored} == {2817}
    assert {len(each) for each in (*new, *newer)} == {257}
