"""The Markdown files that people read: their code, their tables and their links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.packaging.manifests import ROOT

DOCS = ROOT / "docs"
README = ROOT / "README.md"
MANIFESTS = ROOT / "servingruntime" / "README.md"

# A fence's first line, its text up to a fence of the same indentation.
_FENCE = re.compile(r"^( *)```(\w*)([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def pages() -> list[Path]:
    """Every page of the documentation, and the READMEs."""
    return [*sorted(DOCS.rglob("*.md")), README, MANIFESTS, ROOT / "tests" / "README.md"]


def name(page: Path) -> str:
    """A page as a test's id."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str = "", title: str = "") -> list[str]:
    """The texts of the fenced blocks of a language, each line without the fence's indentation."""
    found = []
    for indent, of, rest, text in _FENCE.findall(page.read_text()):
        if of == (language or of) and (not title or f'title="{title}"' in rest):
            found.append("".join(line.removeprefix(indent) for line in text.splitlines(True)))
    return found


def lines(page: Path) -> Iterator[str]:
    """Every command or piece of code: lines of shell blocks, joined over a backslash, and spans."""
    for block in blocks(page, "sh"):
        yield from block.replace("\\\n", " ").splitlines()
    yield from spans(page)


def spans(page: Path) -> list[str]:
    """The texts between single backticks."""
    return _SPAN.findall(_FENCE.sub("", page.read_text()))


def links(page: Path) -> list[str]:
    """The targets of all links and images but those of other hosts."""
    targets = _LINK.findall(_SPAN.sub("", _FENCE.sub("", page.read_text())))
    return [target for target in targets if "://" not in target]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    text = _FENCE.sub("", page.read_text())
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {
        re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())
        for heading in headings
    }


def rows(page: Path, heading: str) -> list[list[str]]:
    """The cells of the one table whose header starts with ``heading``."""
    text = page.read_text().splitlines()
    (start,) = (number for number, line in enumerate(text) if line.startswith(f"| {heading} |"))
    found = []
    for line in text[start + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found
