"""The documentation builds strictly, links to what exists, and loads nothing from another host."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import tomli
from playwright.sync_api import sync_playwright

from tests.packaging.documents import DOCS, MANIFESTS, README, anchors, links, name, pages
from tests.packaging.manifests import ROOT

BUILT = "build/docs"
CHROMIUM = "/usr/bin/chromium"


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    """Build a copy of the documentation as ``make docs`` does."""
    generator = Path(sys.executable).with_name("zensical")
    command = [str(generator), "build", "--strict", "--clean"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    shutil.copytree(DOCS, tmp_path / "docs")
    return tmp_path


def test_a_strict_build_succeeds_without_a_network(copy: Path) -> None:
    result = build(copy)
    assert result.returncode == 0, result.stdout + result.stderr
    built = {str(each.relative_to(copy / BUILT)) for each in (copy / BUILT).rglob("*.html")}
    for page in DOCS.rglob("*.md"):
        assert str(page.relative_to(DOCS).with_suffix(".html")) in built
    assert [*(copy / BUILT).rglob("*.py")] == []


@pytest.mark.parametrize("link", ["nowhere.md", "operators/stores.md#nowhere", "#nowhere"])
def test_a_dead_link_fails_the_build(copy: Path, link: str) -> None:
    with (copy / "docs" / "index.md").open("a") as page:
        page.write(f"\n[A dead link]({link})\n")
    result = build(copy)
    assert result.returncode != 0
    assert "does not exist" in result.stdout + result.stderr


def test_every_page_is_in_the_navigation() -> None:
    navigation = tomli.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    assert sorted(_leaves(navigation)) == sorted(
        str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")
    )


def _leaves(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
        return
    for inner in entry.values() if isinstance(entry, dict) else entry:
        yield from _leaves(inner)


@pytest.mark.parametrize("page", pages(), ids=name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    """The generator checks pages, not images, and not the READMEs."""
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_readme_is_short_and_links_every_page() -> None:
    assert len(README.read_text().splitlines()) <= 200
    linked = {(README.parent / link.partition("#")[0]).resolve() for link in links(README)}
    assert MANIFESTS in linked
    left_out = {"index.md", "start-log.md", "kserve-guide.md"}
    assert {page for page in DOCS.rglob("*.md") if page.name not in left_out} <= linked


def test_the_pages_load_nothing_from_another_host(copy: Path) -> None:
    assert build(copy).returncode == 0
    handler = functools.partial(_Quiet, directory=copy / BUILT)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = f"http://127.0.0.1:{server.server_port}/"
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            requested: list[str] = []
            tab = browser.new_page()
            tab.on("request", lambda request: requested.append(request.url))
            for path in ("index.html", "design/architecture.html", "operators/observability.html"):
                tab.goto(home + path, wait_until="networkidle")
                assert tab.text_content("h1")
            pictures = "all => all.map(each => each.complete && each.naturalWidth > 0)"
            assert all(tab.eval_on_selector_all("img", pictures))
            browser.close()
        server.shutdown()
    assert len(requested) > 6
    assert [url for url in requested if not url.startswith((home, "data:"))] == []


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Log nothing."""
