"""Reads a Dockerfile and a .dockerignore as far as the tests need them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field


@dataclass
class Stage:
    """One FROM and what follows it."""

    base: str
    name: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def last(self, keyword: str) -> str | None:
        """The argument of the last instruction of that name, which is the one that counts."""
        found = [argument for name, argument in self.instructions if name == keyword]
        return found[-1] if found else None

    def context_sources(self) -> list[str]:
        """What its COPY instructions take from the build context."""
        sources: list[str] = []
        for name, argument in self.instructions:
            words = shlex.split(argument) if name in ("COPY", "ADD") else []
            if not any(word.startswith("--from=") for word in words):
                sources += [word for word in words if not word.startswith("--")][:-1]
        return sources


def stages(text: str) -> list[Stage]:
    """The stages of a Dockerfile, in order."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    found: list[Stage] = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        keyword, _, argument = line.strip().partition(" ")
        if keyword.upper() == "FROM":
            base, _, name = re.split(r"\s+(as)\s+", argument, flags=re.IGNORECASE)
            found.append(Stage(base, name))
        elif keyword and found:
            found[-1].instructions.append((keyword.upper(), argument.strip()))
    return found


def excluded(path: str, dockerignore: str) -> bool:
    """Whether a path stays out of the build context: the last pattern that meets it decides."""
    parts = path.strip("/").split("/")
    candidates = ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]
    verdict = False
    for line in dockerignore.splitlines():
        pattern = line.strip()
        if pattern and not pattern.startswith("#"):
            expression = _expression(pattern.removeprefix("!").strip("/"))
            if any(expression.fullmatch(candidate) for candidate in candidates):
                verdict = not pattern.startswith("!")
    return verdict


def _expression(pattern: str) -> re.Pattern[str]:
    """A pattern of .dockerignore; ``*`` stops at a slash, ``**`` spans any number of folders."""
    translated = ""
    for part in re.split(r"(\*\*/|\*\*|\*|\?)", pattern):
        wildcards = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
        translated += wildcards.get(part, re.escape(part))
    return re.compile(translated)
