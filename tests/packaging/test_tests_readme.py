"""``tests/README.md`` lists the markers and the options that there are, and no others."""

from __future__ import annotations

import re

from tests.packaging.manifests import ROOT
from tests.support.options import OPTIONS

README = (ROOT / "tests" / "README.md").read_text()


def rows(heading: str) -> dict[str, list[str]]:
    """The cells of a section's table by its first column."""
    section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = [line.strip("| ").split(" | ") for line in re.findall(r"^\| `.*$", section, re.M)]
    return {first.strip("`"): others for first, *others in cells}


def test_it_lists_every_marker() -> None:
    registered = (ROOT / "pyproject.toml").read_text().split("markers = [")[1].split("]")[0]
    names = re.findall(r'^    "(\w+): ', registered, re.M)
    assert len(names) > 1
    assert list(rows("Markers")) == names


def test_it_lists_every_option_with_its_default() -> None:
    expected = {each.name: [f"`{each.default}`", each.help] for each in OPTIONS}
    assert rows("Options") == expected
