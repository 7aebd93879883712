"""Merges what the sources give, strongest first: flags, file, variables, defaults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kserve_lmcache.config import keys, rules
from kserve_lmcache.config.configuration import Configuration, Value
from kserve_lmcache.config.sources import (
    CONFIG_FILE,
    MOUNTED_FILE,
    Given,
    Source,
    read_environment,
    read_file,
    read_flags,
)
from kserve_lmcache.errors import Problem


@dataclass(frozen=True)
class Flags:
    """What the command line says about the configuration (see :func:`.sources.read_flags`)."""

    settings: Mapping[str, str | None] = field(default_factory=dict)
    assignments: Iterable[str] = ()
    connector: Mapping[str, Any] = field(default_factory=dict)


# Where LMCache's own do not fit; the size of the local tier depends on the machine.
DEFAULTS = {
    "local_cpu": Value(True, "default"),
    "chunk_size": Value(256, "default"),
    # Stable between processes and machines, which Python's own hash is not.
    "pre_caching_hash_algorithm": Value("sha256_cbor", "default"),
}


def resolve(
    flags: Flags,
    environ: Mapping[str, str],
    device: str = "cuda",
    mounted_file: Path = MOUNTED_FILE,
    applied: Iterable[rules.Rule] = rules.ALL,
) -> Configuration:
    """Merge all sources. Problems are collected in the configuration, not raised.

    Args:
        flags: what the command line says.
        environ: the environment.
        device: what the engine computes on: some keys work on an accelerator alone.
        mounted_file: read where ``LMCACHE_CONFIG_FILE`` names no other.
        applied: the rules that it must keep.
    """
    configuration = Configuration(
        values={
            **{
                key.name: Value(key.default, "default")
                for key in keys.table().values()
                if key.is_setting and key.default is not None
            },
            **DEFAULTS,
        }
    )
    path = Path(environ[CONFIG_FILE]) if environ.get(CONFIG_FILE) else mounted_file
    sources = [
        read_flags(flags.settings, flags.assignments, flags.connector),
        read_file(path) if environ.get(CONFIG_FILE) or path.exists() else Source(),
        read_environment(environ),
    ]
    for source in sources:
        configuration.problems += source.problems
        configuration.notes += source.notes
    _merge(configuration, sources)
    for rule in applied:
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
