"""The page about upgrades, whose commands several tests read."""

from __future__ import annotations

import re

from tests.packaging.manifests import ROOT

PAGE = (ROOT / "docs" / "operators" / "upgrades.md").read_text()
_ANNOTATE = re.compile(r"kubectl annotate inferenceservice NAME --overwrite ([\w./-]+)=(\S+)")


def annotations() -> dict[str, str]:
    """The annotations that the page sets on a service, with their values as the page has them."""
    return dict(_ANNOTATE.findall(PAGE))


def annotation(part: str) -> str:
    """The name of the one annotation that has this in it."""
    (name,) = (each for each in annotations() if part in each)
    return name
