"""Reads flags, the YAML file and the environment; nothing is decided here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from kserve_lmcache.compat.lmcache import configuration as lmcache
from kserve_lmcache.config import keys
from kserve_lmcache.config.keys import PREFIX, Key
from kserve_lmcache.config.settings import SETTINGS, VARIABLE_PREFIX
from kserve_lmcache.config.values import parse, unquote
from kserve_lmcache.errors import Problem

CONFIG_FILE = "LMCACHE_CONFIG_FILE"
MOUNTED_FILE = Path("/lmcache/lmcache_config.yaml")
# The flag for any key of LMCache: --lmcache chunk_size=128
KEY_FLAG = "--lmcache"

_LARGEST_FILE = 2**20  # bytes; a ConfigMap holds no more
# KServe's guide sets it; LMCache does not read it any more.
_FORMER_VARIABLES = {"LMCACHE_USE_EXPERIMENTAL"}
# What Kubernetes sets for every Service of the namespace, one called "lmcache-server" included
# (https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables).
_SERVICE_LINK = re.compile(
    r".*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)=.*"
    # LMCACHE_MP_PORT is a key, and what a Service called lmcache-mp brings: its value tells.
    r"|.*_PORT=(tcp|udp|sctp)://.*",
    re.DOTALL,
)


@dataclass(frozen=True)
class Given:
    """A value that a source gives for a key, parsed, and where exactly."""

    key: Key
    value: Any
    where: str


@dataclass
class Source:
    """What one source gives.

    Attributes:
        given: values of known keys and of the right types.
        problems: everything else that it holds.
        notes: what is accepted with a word about it.
    """

    given: list[Given] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def take(self, key: Key, raw: Any, where: str) -> None:
        """Parse a value, or note what is wrong with it."""
        try:
            self.given.append(Given(key, parse(key, raw), where))
        except (ValueError, TypeError, OverflowError) as error:
            self.problems.append(Problem(f"{key.name} {error}", where, f"Correct {key.name}."))

    def unknown(self, what: str, name: str, where: str, known: Iterable[str]) -> None:
        """Note a name that nothing has, with the nearest that something has."""
        near = get_close_matches(name, known, n=1)
        fix = f"Did you mean {near[0]}?" if near else "Remove it."
        self.problems.append(Problem(what, where, fix))


def read_flags(
    settings: Mapping[str, str | None], assignments: Iterable[str], connector: Mapping[str, Any]
) -> Source:
    """Our flags, ``--lmcache KEY=VALUE``, and ``lmcache.KEY`` of the connector's extra config.

    Args:
        settings: text of each of our settings' flags; ``None`` where it was not given.
        assignments: the values of ``--lmcache``.
        connector: ``kv_connector_extra_config`` of ``--kv-transfer-config``.
    """
    source = Source()
    known = keys.table()
    for setting in SETTINGS:
        if (text := settings.get(setting.name)) is not None:
            source.take(known[setting.name], text, setting.flag)
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if separator:
            _take_flag(source, name.strip(), text, f"{KEY_FLAG} {name.strip()}")
        else:
            what = f"{assignment!r} has no value"
            source.problems.append(Problem(what, KEY_FLAG, f"Write {KEY_FLAG} KEY=VALUE."))
    for name, raw in connector.items():
        if name.startswith("lmcache."):
            _take_flag(source, name.removeprefix("lmcache."), raw, f"--kv-transfer-config {name}")
    return source


def _take_flag(source: Source, name: str, raw: Any, where: str) -> None:
    name = keys.aliases().get(name, name)
    key = keys.table().get(name)
    if key is None or key.is_setting:
        names = [known.name for known in keys.table().values() if not known.is_setting]
        source.unknown(f"{name} is not a key of LMCache", name, where, names)
    else:
        source.take(key, raw, where)


def read_environment(environ: Mapping[str, str]) -> Source:
    """``LMCACHE_*`` and ``KSERVE_LMCACHE_*`` variables."""
    source = Source()
    known = keys.variables()
    for variable in sorted(environ):
        text = environ[variable]
        if not variable.startswith((PREFIX, VARIABLE_PREFIX)) or variable == CONFIG_FILE:
            continue
        if _SERVICE_LINK.fullmatch(f"{variable}={text}"):
            continue
        if (key := known.get(variable)) is not None:
            if key.variable != variable:
                source.notes.append(f"{variable} is the older name of {key.variable}")
            source.take(key, unquote(text), variable)
        elif variable in _FORMER_VARIABLES:
            source.notes.append(f"{variable} is not read by LMCache any more; remove it")
        elif not _is_read_elsewhere(variable):
            source.unknown(f"{variable} is not read by anything", variable, variable, known)
    return source


def _is_read_elsewhere(variable: str) -> bool:
    return any(
        variable.startswith(name) if name.endswith("_") else variable == name
        for name in lmcache.variables_in_source()
    )


def read_file(path: Path) -> Source:
    """A YAML file that maps keys to values."""
    source = Source()
    try:
        pairs = _pairs(path)
    except _UnreadableFileError as error:
        fix = f"Correct the file, or unset {CONFIG_FILE}."
        where = f"{path}:{error.line}" if error.line else str(path)
        source.problems.append(Problem(str(error), where, fix))
        return source
    seen: dict[str, int] = {}
    for name, raw, line in pairs:
        where = f"{path}:{line}"
        if name in seen:
            what = f"{name} stands twice, in line {seen[name]} as well"
            source.problems.append(Problem(what, where, "Remove one of them."))
            continue
        seen[name] = line
        key = keys.table().get(keys.aliases().get(name, name))
        if key is None:
            what = f"{name} is not a key of LMCache"
            source.unknown(what, name, where, keys.table())
        elif key.secret:
            fix = f"Use {key.variable} or {key.name}_file with a Secret."
            source.problems.append(Problem(f"{name} may not stand in a file", where, fix))
        else:
            if key.name != name:
                source.notes.append(f"{where}: {name} is the older name of {key.name}")
            source.take(key, raw, where)
    return source


class _UnreadableFileError(Exception):
    def __init__(self, message: str, line: int = 0) -> None:
        self.line = line
        super().__init__(message)


def _pairs(path: Path) -> list[tuple[str, Any, int]]:
    """The root mapping's keys, values and lines."""
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE + 1)
        if len(data) > _LARGEST_FILE:
            raise _UnreadableFileError("is larger than 1 MiB")
        return _pairs_of(yaml.SafeLoader(data.decode("utf-8")))
    except OSError as error:
        raise _UnreadableFileError(f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise _UnreadableFileError("is not UTF-8") from None
    except RecursionError:
        raise _UnreadableFileError("is nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "malformed"
        raise _UnreadableFileError(
            f"is not YAML ({reason})", mark.line + 1 if mark else 0
        ) from None


def _pairs_of(loader: yaml.SafeLoader) -> list[tuple[str, Any, int]]:
    root = loader.get_single_node()
    if root is None or root.tag == "tag:yaml.org,2002:null":
        return []
    if not isinstance(root, yaml.MappingNode):
        kind = "list" if isinstance(root, yaml.SequenceNode) else "text"
        raise _UnreadableFileError(f"holds a {kind} where a mapping of keys to values must stand")
    loader.flatten_mapping(root)
    pairs = []
    for name, node in root.value:
        line = name.start_mark.line + 1
        if not isinstance(name, yaml.ScalarNode):
            raise _UnreadableFileError("has a key that is not a text", line)
        try:
            pairs.append((name.value, loader.construct_object(node, deep=True), line))
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception:
            # PyYAML's constructors let anything out: KeyError for "!!bool maybe", ValueError for
            # the date 2026-99-99, AttributeError for "!!timestamp soon".
            what = f"has a value for {name.value} that its YAML tag does not fit"
            raise _UnreadableFileError(what, line) from None
    return pairs
