"""A picture that can be drawn, in light and in dark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

LIGHT, DARK = "light", "dark"


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        name: of its file, without suffix.
        title: for people.
        alt: what is to be seen, in words, with its main figures.
        draw: the PNG of a theme.
    """

    name: str
    title: str
    alt: str
    draw: Callable[[str], bytes]
