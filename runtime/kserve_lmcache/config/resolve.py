"""Merges the sources: flags, KServe's field, the file, variables, defaults. The first one wins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kserve_lmcache.config import keys, kserve_offloading, rules
from kserve_lmcache.config.configuration import Configuration, Value
from kserve_lmcache.config.rule import Check, Context
from kserve_lmcache.config.sources import (
    CONFIG_FILE,
    MOUNTED_FILE,
    Assignment,
    Content,
    read_environment,
    read_file,
    read_flags,
)
from kserve_lmcache.errors import Problem


@dataclass(frozen=True)
class Flags:
    """The flags of the configuration. See :func:`.sources.read_flags`.

    Attributes:
        offloading: KServe's field, see :mod:`.kserve_offloading`; ``None`` where it is not set.
    """

    settings: Mapping[str, str | None] = field(default_factory=dict)
    lmcache_keys: Iterable[str] = ()
    connector: Mapping[str, Any] = field(default_factory=dict)
    offloading: Mapping[str, Any] | None = None


# The defaults of this runtime for LMCache's keys. The size of the local tier has no constant
# default: it depends on the machine.
DEFAULTS = {
    "local_cpu": Value(True, "default"),
    "chunk_size": Value(256, "default"),
    # The same in every process and on every machine, unlike Python's own hash.
    "pre_caching_hash_algorithm": Value("sha256_cbor", "default"),
}

_IN_A_POD = "KUBERNETES_SERVICE_HOST"  # Kubernetes sets it in every container


def resolve(
    flags: Flags,
    environ: Mapping[str, str],
    device: str = "cuda",
    mounted_file: Path = MOUNTED_FILE,
    checks: Iterable[Check] = rules.ALL,
) -> Configuration:
    """Merge all sources and check the result. Problems are collected, not raised.

    Args:
        flags: the flags of the configuration.
        environ: the environment.
        device: the device on which the engine computes. Some keys only work on an accelerator.
        mounted_file: the file to read when ``LMCACHE_CONFIG_FILE`` names no other.
        checks: the rules to check.
    """
    configuration = Configuration(values={**_settings(environ), **DEFAULTS})
    path = Path(environ[CONFIG_FILE]) if environ.get(CONFIG_FILE) else mounted_file
    contents = [
        read_flags(flags.settings, flags.lmcache_keys, flags.connector),
        read_file(path) if environ.get(CONFIG_FILE) or path.exists() else Content(),
        read_environment(environ),
    ]
    spec = flags.offloading if _offloads(contents) else None
    if spec is not None:
        contents.insert(1, kserve_offloading.read(spec))
    for content in contents:
        configuration.problems += content.problems
        configuration.notes += content.notes
    _merge(configuration, contents)
    if spec is not None:
        if configuration.source("max_local_cpu_size") == kserve_offloading.CPU:
            configuration.local_tier_total = configuration.get("max_local_cpu_size")
        kserve_offloading.size_disk(configuration, spec)
    context = Context(configuration, device)
    for check in checks:
        configuration.problems += check(context)
    return configuration


def _offloads(contents: Iterable[Content]) -> bool:
    """Whether no source turns offloading off. Otherwise KServe's field is vLLM's."""
    given = (each for content in contents for each in content.assignments)
    return next((bool(each.value) for each in given if each.key.name == "offload"), True)


def _settings(environ: Mapping[str, str]) -> dict[str, Value]:
    """The defaults of this runtime's settings."""
    found = {
        key.name: Value(key.default, "default")
        for key in keys.table().values()
        if key.is_setting and key.default is not None
    }
    if not environ.get(_IN_A_POD):  # there is no balancer that has to learn of it
        found["drain_delay"] = Value(0.0, "default outside of Kubernetes")
    return found


def _merge(configuration: Configuration, contents: Iterable[Content]) -> None:
    """Merge the contents of the sources, the strongest first."""
    by_key: dict[str, list[Assignment]] = {}
    for content in contents:
        first: dict[str, Assignment] = {}
        for assignment in content.assignments:
            kept = first.setdefault(assignment.key.name, assignment)
            if assignment.value != kept.value:
                message = f"{assignment.key.name} contradicts {kept.source}"
                problem = Problem(message, assignment.source, "Keep one of them.")
                configuration.problems.append(problem)
        for name, assignment in first.items():
            by_key.setdefault(name, []).append(assignment)
    for name, assignments in by_key.items():
        if name == "extra_config":
            configuration.values[name] = _merge_extra_config(configuration, assignments)
            continue
        winner, *losers = assignments
        configuration.values[name] = Value(winner.value, winner.source)
        configuration.notes += [
            f"{loser.source} is not used: {winner.source} sets {name}" for loser in losers
        ]


def _merge_extra_config(configuration: Configuration, assignments: Sequence[Assignment]) -> Value:
    """Merge the mappings of all sources, option by option."""
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for assignment in assignments:
        for name, value in (assignment.value or {}).items():
            if name in sources:
                configuration.notes.append(
                    f"{name} of {assignment.source} is not used: {sources[name]} sets {name}"
                )
            else:
                merged[name] = value
                sources[name] = assignment.source
    return Value(merged, " + ".join(assignment.source for assignment in assignments))
