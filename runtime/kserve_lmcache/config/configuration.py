"""The values in force, with where each came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kserve_lmcache.config import keys
from kserve_lmcache.errors import ConfigurationError, Problem
from kserve_lmcache.redaction import redact


@dataclass(frozen=True)
class Value:
    """A value in force and where it came from (``file:line``, a variable, a flag, a default)."""

    value: Any
    source: str


@dataclass
class Configuration:
    """The configuration in force, or everything that keeps it from being so.

    Attributes:
        values: what was set, and the defaults of ours, by key.
        notes: what an operator should know: values that lost, older names.
        problems: all mistakes.
    """

    values: dict[str, Value] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def get(self, name: str) -> Any:
        """The value in force; LMCache's default where nothing was set."""
        return self.values[name].value if name in self.values else keys.table()[name].default

    def source(self, name: str) -> str:
        """Where the value in force came from."""
        return self.values[name].source if name in self.values else "LMCache's default"

    def lmcache_values(self) -> dict[str, Any]:
        """What LMCache has to be told; nothing where its own default is nothing too."""
        table = keys.table()
        return {
            name: value.value
            for name, value in self.values.items()
            if not table[name].is_setting
            and (value.value is not None or table[name].default is not None)
        }

    def redacted(self) -> dict[str, Value]:
        """All values as they may be shown, those of LMCache's table first."""
        names = sorted(self.values, key=lambda name: keys.table()[name].is_setting)
        return {
            name: Value(redact(self.values[name].value, name), self.values[name].source)
            for name in names
        }

    def raise_problems(self) -> None:
        """Refuse it when it has problems.

        Raises:
            ConfigurationError: with all of them.
        """
        if self.problems:
            raise ConfigurationError(self.problems)
