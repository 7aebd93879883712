"""Merges what the sources give, strongest first: flags, file, variables, defaults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kserve_lmcache.config import keys, rules
from kserve_lmcache.config.sources import (
    CONFIG_FILE,
    MOUNTED_FILE,
    Given,
    Source,
    read_environment,
    read_file,
    read_flags,
)
from kserve_lmcache.errors import ConfigurationError, Problem
from kserve_lmcache.redaction import hide


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

    def lmcache(self) -> dict[str, Any]:
        """What LMCache has to be told; nothing where its own default is nothing too."""
        table = keys.table()
        return {
            name: value.value
            for name, value in self.values.items()
            if not table[name].own and (value.value is not None or table[name].default is not None)
        }

    def shown(self) -> dict[str, Value]:
        """All values as they may be shown, those of LMCache's table first."""
        names = sorted(self.values, key=lambda name: keys.table()[name].own)
        return {
            name: Value(hide(self.values[name].value, name), self.values[name].source)
            for name in names
        }

    def check(self) -> None:
        """Refuse it when it has problems.

        Raises:
            ConfigurationError: with all of them.
        """
        if self.problems:
            raise ConfigurationError(self.problems)


@dataclass(frozen=True)
class Flags:
    """What the command line says about the configuration (see :func:`.sources.read_flags`)."""

    own: Mapping[str, str | None] = field(default_factory=dict)
    assignments: Iterable[str] = ()
    connector: Mapping[str, Any] = field(default_factory=dict)


def resolve(
    flags: Flags,
    environ: Mapping[str, str],
    defaults: Mapping[str, Value],
    device: str = "cuda",
    mounted_file: Path = MOUNTED_FILE,
) -> Configuration:
    """The configuration from all sources; nothing is raised, see :meth:`Configuration.check`.

    Args:
        flags: what the command line says.
        environ: the environment.
        defaults: ours, where LMCache's do not fit.
        device: what the engine computes on: some keys work on an accelerator alone.
        mounted_file: read where ``LMCACHE_CONFIG_FILE`` names no other.
    """
    configuration = Configuration(
        values={
            **{
                key.name: Value(key.default, "default")
                for key in keys.table().values()
                if key.own and key.default is not None
            },
            **defaults,
        }
    )
    path = Path(environ[CONFIG_FILE]) if environ.get(CONFIG_FILE) else mounted_file
    sources = [
        read_flags(flags.own, flags.assignments, flags.connector),
        read_file(path) if environ.get(CONFIG_FILE) or path.exists() else Source(),
        read_environment(environ),
    ]
    for source in sources:
        configuration.problems += source.problems
        configuration.notes += source.notes
    _merge(configuration, sources)
    for rule in rules.RULES:
        configuration.problems += rule(configuration, device)
    return configuration


def _merge(configuration: Configuration, sources: Iterable[Source]) -> None:
    """``sources`` are ordered, strongest first."""
    by_key: dict[str, list[Given]] = {}
    for source in sources:
        strongest = {given.key.name: given for given in reversed(source.given)}
        for given in source.given:
            kept = strongest[given.key.name]
            if given.value != kept.value:
                what = f"{given.key.name} contradicts {kept.where}"
                configuration.problems.append(Problem(what, given.where, "Keep one of them."))
        for name, given in strongest.items():
            by_key.setdefault(name, []).append(given)
    for name, found in by_key.items():
        if name == "extra_config":
            configuration.values[name] = _merge_extra_config(configuration, found)
            continue
        winner, *losers = found
        configuration.values[name] = Value(winner.value, winner.where)
        configuration.notes += [
            f"{loser.where} is not used: {winner.where} sets {name}" for loser in losers
        ]


def _merge_extra_config(configuration: Configuration, found: Iterable[Given]) -> Value:
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for given in found:
        for name, value in (given.value or {}).items():
            if name in origin:
                configuration.notes.append(
                    f"{name} of {given.where} is not used: {origin[name]} sets it"
                )
            else:
                merged[name] = value
                origin[name] = given.where
    return Value(merged, " + ".join(given.where for given in found))
