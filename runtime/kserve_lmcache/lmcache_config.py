"""One effective LMCache configuration from a YAML file, ``LMCACHE_*`` variables and defaults.

The file beats the variables key by key, as KServe's guide promises (LMCache itself reads them
the other way round). Names, types and defaults are LMCache's own table
(``lmcache.v1.config._CONFIG_DEFINITIONS``), read at run time and never copied.
"""

from __future__ import annotations

import json
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from kserve_lmcache.errors import ConfigurationError, Problem

CONFIG_FILE = "LMCACHE_CONFIG_FILE"
MOUNTED_FILE = Path("/lmcache/lmcache_config.yaml")
PREFIX = "LMCACHE_"

_TRUE = {"true", "1", "yes", "on"}
_FALSE = {"false", "0", "no", "off"}
_SIZES = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@dataclass(frozen=True)
class Setting:
    """The value of one key and where it came from (``file:line``, a variable, or a default)."""

    value: Any
    source: str


@dataclass(frozen=True)
class Definition:
    """One key of LMCache's table."""

    name: str
    type: Any
    default: Any


def definitions() -> dict[str, Definition]:
    """LMCache's keys by name."""
    from lmcache.v1.config import _CONFIG_DEFINITIONS

    return {
        name: Definition(name, definition["type"], definition["default"])
        for name, definition in _CONFIG_DEFINITIONS.items()
    }


def resolve(
    environ: Mapping[str, str],
    defaults: Mapping[str, Setting],
    mounted_file: Path = MOUNTED_FILE,
) -> tuple[dict[str, Setting], list[str]]:
    """Merge the sources, strongest first: file, variables, ``defaults``.

    Returns:
        The settings that differ from LMCache's own defaults or were set, and one note for
        every variable that lost against the file.

    Raises:
        ConfigurationError: with every problem of every source.
    """
    table = definitions()
    problems: list[Problem] = []
    from_environment = _read_environment(environ, table, problems)
    path = Path(environ[CONFIG_FILE]) if environ.get(CONFIG_FILE) else mounted_file
    from_file: dict[str, Setting] = {}
    if environ.get(CONFIG_FILE) or path.exists():
        from_file = _read_file(path, table, problems)
    notes = [
        f"{from_environment[name].source} is not used: {setting.source} sets {name}"
        for name, setting in from_file.items()
        if name in from_environment and name != "extra_config"
    ]
    settings = {**defaults, **from_environment, **from_file}
    if "extra_config" in from_file and "extra_config" in from_environment:
        strong, weak = from_file["extra_config"], from_environment["extra_config"]
        merged = {**(weak.value or {}), **(strong.value or {})}
        settings["extra_config"] = Setting(merged, f"{strong.source} + {weak.source}")
    if problems:
        raise ConfigurationError(problems)
    return settings, notes


def write(settings: Mapping[str, Setting], path: Path) -> None:
    """Write the settings for the engine's processes; only their user may read the file."""
    text = yaml.safe_dump({name: setting.value for name, setting in settings.items()})
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def hand_over(path: Path, environ: MutableMapping[str, str]) -> None:
    """Let LMCache read ``path`` and nothing else.

    LMCache puts every ``LMCACHE_<KEY>`` variable over its file: none may reach its processes.
    """
    from lmcache.v1.config import _CONFIG_ALIASES

    for name in (*definitions(), *_CONFIG_ALIASES):
        environ.pop(PREFIX + name.upper(), None)
    environ[CONFIG_FILE] = str(path)


def parse(definition: Definition, raw: Any) -> Any:
    """A value as LMCache's type for its key.

    Raises:
        ValueError: saying what was expected.
    """
    kind, optional = _unwrap_optional(definition.type)
    if raw is None or (optional and raw == ""):
        if optional or definition.default is None:
            return None
        raise ValueError("is empty")
    origin = typing.get_origin(kind) or kind
    if origin is list:
        (item,) = typing.get_args(kind) or (str,)
        items = raw if isinstance(raw, list) else [part.strip() for part in str(raw).split(",")]
        return [_parse_scalar(item, part) for part in items if part != ""]
    if origin is dict:
        return _parse_mapping(raw)
    if kind is float and definition.name.endswith("_size"):
        return _parse_size(raw)
    return _parse_scalar(kind, raw)


def _unwrap_optional(kind: Any) -> tuple[Any, bool]:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(kind) if member is not type(None)]
        if len(members) == 1:
            return members[0], True
    return kind, False


def _parse_scalar(kind: type, raw: Any) -> Any:
    if isinstance(raw, dict | list):
        raise ValueError(f"expected {_NAMES[kind]}, got a {type(raw).__name__}")
    text = str(raw).strip()
    if kind is bool:
        if text.lower() in _TRUE:
            return True
        if text.lower() in _FALSE:
            return False
        raise ValueError(f"{text!r} is not a boolean (true, false, yes, no, on, off, 1, 0)")
    if kind is str:
        return text
    try:
        if isinstance(raw, bool):
            raise ValueError
        return kind(text)
    except ValueError:
        raise ValueError(f"{text!r} is not {_NAMES[kind]}") from None


_NAMES: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "a boolean",
}


def _parse_size(raw: Any) -> float:
    """A size in GB (2**30 bytes): ``2.0``, or with a unit of Kubernetes (``512Mi``)."""
    text = str(raw).strip()
    for unit, factor in _SIZES.items():
        if text.endswith(unit):
            number: float = _parse_scalar(float, text.removesuffix(unit))
            return number * factor / 2**30
    result: float = _parse_scalar(float, raw)
    return result


def _parse_mapping(raw: Any) -> dict[str, Any]:
    if isinstance(raw, str):
        try:
            raw = json.loads(raw)
        except json.JSONDecodeError as error:
            raise ValueError(f"is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"expected a mapping, got a {type(raw).__name__}")
    return raw


def _check(name: str, value: Any) -> str | None:
    """What is wrong with a value of the right type, if anything."""
    if name == "chunk_size" and value <= 0:
        return f"chunk_size must be positive, got {value}"
    if name == "max_local_cpu_size" and not value > 0:
        return f"max_local_cpu_size must be positive, got {value}"
    if name == "remote_config_url" and value:
        return "remote_config_url would post the whole environment to that address"
    return None


def _read_environment(
    environ: Mapping[str, str], table: Mapping[str, Definition], problems: list[Problem]
) -> dict[str, Setting]:
    found = {
        name: environ[variable] for name in table if (variable := PREFIX + name.upper()) in environ
    }
    return _parse_all(found, table, lambda name: PREFIX + name.upper(), problems)


def _read_file(
    path: Path, table: Mapping[str, Definition], problems: list[Problem]
) -> dict[str, Setting]:
    mend = f"Correct the file, or unset {CONFIG_FILE}."
    try:
        with path.open(encoding="utf-8") as file:
            root = yaml.compose(file, Loader=yaml.SafeLoader)
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        problems.append(Problem(f"cannot be read ({reason})", str(path), mend))
        return {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        reason = getattr(error, "problem", None) or str(error)
        problems.append(Problem(f"is not YAML ({reason})", place, mend))
        return {}
    if values is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        what = f"holds a {type(values).__name__} where a mapping of keys to values must stand"
        problems.append(Problem(what, str(path), mend))
        return {}
    lines = {node.value: node.start_mark.line + 1 for node, _ in root.value}

    def where(name: str) -> str:
        return f"{path}:{lines.get(name, 1)}"

    known = {}
    for key, value in values.items():
        if key in table:
            known[key] = value
            continue
        near = get_close_matches(str(key), table, n=1)
        advice = f"Did you mean {near[0]}?" if near else "Remove it."
        problems.append(Problem(f"{key} is not a key of LMCache", where(str(key)), advice))
    return _parse_all(known, table, where, problems)


def _parse_all(
    found: Mapping[str, Any],
    table: Mapping[str, Definition],
    where: Callable[[str], str],
    problems: list[Problem],
) -> dict[str, Setting]:
    settings = {}
    for name, raw in found.items():
        try:
            value = parse(table[name], raw)
            if message := _check(name, value):
                raise ValueError(message)
        except ValueError as error:
            problems.append(Problem(str(error), where(name), f"Correct {name}."))
        else:
            settings[name] = Setting(value, where(name))
    return settings


def describe(settings: Mapping[str, Setting], names: Iterable[str]) -> str:
    """``key=value (source)`` of the named settings, for the log."""
    return ", ".join(
        f"{name}={settings[name].value} ({settings[name].source})"
        for name in names
        if name in settings
    )
