"""The values in force, each with its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kserve_lmcache.config import keys, store_url
from kserve_lmcache.errors import ConfigurationError, Problem
from kserve_lmcache.redaction import redact


def show(name: str, value: Any) -> Any:
    """A copy of the value of a key without its secrets."""
    if name == "remote_url" and isinstance(value, str) and value:
        return store_url.shown(value)
    return redact(value, name)


@dataclass(frozen=True)
class Value:
    """A value in force, and its source: ``file:line``, a variable, a flag or a default."""

    value: Any
    source: str


@dataclass(frozen=True)
class Shown:
    """What may be shown of a configuration: it has no secret."""

    values: Mapping[str, Value]
    notes: Sequence[str] = ()

    def encode(self) -> dict[str, Any]:
        """``{"values": {KEY: {"value": …, "source": …}}, "notes": […]}``, for JSON."""
        return {
            "values": {
                name: {"value": shown.value, "source": shown.source}
                for name, shown in self.values.items()
            },
            "notes": list(self.notes),
        }

    @classmethod
    def decode(cls, content: Mapping[str, Any]) -> Shown:
        """The result of :func:`encode`, read back.

        Raises:
            LookupError, TypeError, AttributeError: the content is another.
        """
        values = {
            str(name): Value(each["value"], str(each["source"]))
            for name, each in content["values"].items()
        }
        return cls(values, [str(note) for note in content["notes"]])


@dataclass
class Configuration:
    """The configuration in force. With problems, it must not be used.

    Attributes:
        values: the values that a source sets, and the defaults of this runtime, by key.
        notes: what an operator should know: unused values, former names.
        problems: every mistake that was found.
        local_tier_total: the GiB of the local tiers of all workers of an engine, where KServe's
            field says them.
    """

    values: dict[str, Value] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    local_tier_total: float | None = None

    def get(self, name: str) -> Any:
        """The value in force. LMCache's default where no source sets the key."""
        return self.values[name].value if name in self.values else keys.table()[name].default

    def source(self, name: str) -> str:
        """The source of the value in force."""
        return self.values[name].source if name in self.values else "LMCache's default"

    def lmcache_values(self) -> dict[str, Any]:
        """The values of LMCache's keys, without those that are None like LMCache's default."""
        table = keys.table()
        return {
            name: value.value
            for name, value in self.values.items()
            if not table[name].is_setting
            and (value.value is not None or table[name].default is not None)
        }

    def redacted(self) -> dict[str, Value]:
        """All values without their secrets. LMCache's keys come first."""
        names = sorted(self.values, key=lambda name: keys.table()[name].is_setting)
        return {
            name: Value(show(name, self.values[name].value), self.values[name].source)
            for name in names
        }

    def shown(self) -> Shown:
        """What may be shown of this configuration."""
        return Shown(self.redacted(), [redact(note) for note in self.notes])

    def add_problem(self, name: str, message: str, fix: str) -> None:
        """Add a problem of the key ``name``. The message follows the key's name."""
        self.problems.append(Problem(f"{name} {message}", self.source(name), fix))

    def raise_problems(self) -> None:
        """Refuse a configuration with problems.

        Raises:
            ConfigurationError: the configuration has problems. The error has all of them.
        """
        if self.problems:
            raise ConfigurationError(self.problems)
