"""Reads the flags, the YAML file and the environment. :mod:`.resolve` merges the results."""

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
_NAME = re.compile(r"\w+")
# KServe's guide sets this variable, and LMCache no longer reads it.
_FORMER_VARIABLES = {"LMCACHE_USE_EXPERIMENTAL"}
# Kubernetes sets such variables for every Service of the namespace, also for "lmcache-server"
# (https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables).
_SERVICE_LINK = re.compile(
    r".*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)=.*"
    # LMCACHE_MP_PORT is a key, and the variable of a Service "lmcache-mp": the value decides.
    r"|.*_PORT=(tcp|udp|sctp)://.*",
    re.DOTALL,
)


@dataclass(frozen=True)
class Assignment:
    """A parsed value that one source gives to a key. ``source`` is the exact place."""

    key: Key
    value: Any
    source: str


@dataclass
class Content:
    """The content of one source.

    Attributes:
        assignments: the values of known keys that have the right type.
        problems: everything else in the source.
        notes: remarks about what is accepted.
    """

    assignments: list[Assignment] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def assign(self, key: Key, raw: Any, source: str) -> None:
        """Parse a value. Adds an assignment or a problem."""
        try:
            self.assignments.append(Assignment(key, parse(key, raw), source))
        except (ValueError, TypeError, OverflowError) as error:
            self.problems.append(Problem(f"{key.name} {error}", source, f"Correct {key.name}."))

    def add_unknown(self, message: str, name: str, source: str, known: Iterable[str]) -> None:
        """Add the problem of an unknown name, with the nearest known name."""
        near = get_close_matches(name, known, n=1)
        fix = f"Did you mean {near[0]}?" if near else f"Remove {name}."
        self.problems.append(Problem(message, source, fix))


def read_flags(
    settings: Mapping[str, str | None],
    lmcache_keys: Iterable[str],
    connector: Mapping[str, Any],
) -> Content:
    """Read the flags of the settings, ``--lmcache``, and the connector's extra configuration.

    Args:
        settings: the text of each setting's flag. None for a flag that is absent.
        lmcache_keys: the values of ``--lmcache``, each ``KEY=VALUE``.
        connector: ``kv_connector_extra_config`` of ``--kv-transfer-config``. Only the entries
            ``lmcache.KEY`` are read.
    """
    content = Content()
    known = keys.table()
    for setting in SETTINGS:
        if (text := settings.get(setting.name)) is not None:
            content.assign(known[setting.name], text, setting.flag)
    for pair in lmcache_keys:
        name, separator, text = pair.partition("=")
        if separator:
            _assign_lmcache_key(content, name.strip(), text, f"{KEY_FLAG} {name.strip()}")
        else:
            # Anything may stand there, a store's URL with its password too: only names are shown.
            shown = repr(pair) if _NAME.fullmatch(pair) else "an item"
            message = f"{shown} has no value"
            content.problems.append(Problem(message, KEY_FLAG, f"Write {KEY_FLAG} KEY=VALUE."))
    for name, raw in connector.items():
        if name.startswith("lmcache."):
            key_name = name.removeprefix("lmcache.")
            _assign_lmcache_key(content, key_name, raw, f"--kv-transfer-config {name}")
    return content


def _assign_lmcache_key(content: Content, name: str, raw: Any, source: str) -> None:
    name = keys.aliases().get(name, name)
    key = keys.table().get(name)
    if key is None or key.is_setting:
        known = [key.name for key in keys.table().values() if not key.is_setting]
        content.add_unknown(f"{name} is not a key of LMCache", name, source, known)
    else:
        content.assign(key, raw, source)


def read_environment(environ: Mapping[str, str]) -> Content:
    """Read the variables ``LMCACHE_*`` and ``KSERVE_LMCACHE_*``."""
    content = Content()
    known = keys.variables()
    for variable in sorted(environ):
        text = environ[variable]
        if not variable.startswith((PREFIX, VARIABLE_PREFIX)) or variable == CONFIG_FILE:
            continue
        if _SERVICE_LINK.fullmatch(f"{variable}={text}"):
            continue
        if (key := known.get(variable)) is not None:
            if key.variable != variable:
                content.notes.append(f"{variable} is the former name of {key.variable}")
            # Quotes around a password are a fault that its reader reports.
            content.assign(key, text if key.secret else unquote(text), variable)
        elif variable in _FORMER_VARIABLES:
            content.notes.append(f"LMCache no longer reads {variable}. Remove {variable}")
        elif not _is_read_elsewhere(variable):
            message = f"{variable} is an unknown variable"
            content.add_unknown(message, variable, variable, known)
    return content


def _is_read_elsewhere(variable: str) -> bool:
    return any(
        variable.startswith(name) if name.endswith("_") else variable == name
        for name in lmcache.variables_in_source()
    )


def read_file(path: Path) -> Content:
    """Read a YAML file: a mapping of keys to values."""
    content = Content()
    try:
        entries = _entries(path)
    except _UnreadableFileError as error:
        fix = f"Correct the file, or unset {CONFIG_FILE}."
        source = f"{path}:{error.line}" if error.line else str(path)
        content.problems.append(Problem(str(error), source, fix))
        return content
    lines: dict[str, int] = {}
    for name, raw, line in entries:
        source = f"{path}:{line}"
        if name in lines:
            message = f"{name} is in line {lines[name]} as well"
            content.problems.append(Problem(message, source, "Remove one of them."))
            continue
        lines[name] = line
        key = keys.table().get(keys.aliases().get(name, name))
        if key is None:
            message = f"{name} is not a key of LMCache"
            content.add_unknown(message, name, source, keys.table())
        elif key.secret:
            fix = f"Use {key.variable} or {key.name}_file with a Secret."
            content.problems.append(Problem(f"{name} must not be in a file", source, fix))
        else:
            if key.name != name:
                content.notes.append(f"{source}: {name} is the former name of {key.name}")
            content.assign(key, raw, source)
    return content


class _UnreadableFileError(Exception):
    def __init__(self, message: str, line: int = 0) -> None:
        self.line = line
        super().__init__(message)


def _entries(path: Path) -> list[tuple[str, Any, int]]:
    """The keys, values and lines of the file's mapping.

    Raises:
        _UnreadableFileError: the file cannot be read, or holds no mapping in YAML.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE + 1)
        if len(data) > _LARGEST_FILE:
            raise _UnreadableFileError("is larger than 1 MiB")
        return _mapping_entries(yaml.SafeLoader(data.decode("utf-8")))
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


def _mapping_entries(loader: yaml.SafeLoader) -> list[tuple[str, Any, int]]:
    root = loader.get_single_node()
    if root is None or root.tag == "tag:yaml.org,2002:null":
        return []
    if not isinstance(root, yaml.MappingNode):
        kind = "list" if isinstance(root, yaml.SequenceNode) else "string"
        raise _UnreadableFileError(f"is a {kind}, but must be a mapping of keys to values")
    loader.flatten_mapping(root)
    entries = []
    for name, node in root.value:
        line = name.start_mark.line + 1
        if not isinstance(name, yaml.ScalarNode):
            raise _UnreadableFileError("has a key that is not a string", line)
        try:
            entries.append((name.value, loader.construct_object(node, deep=True), line))
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception:
            # PyYAML's constructors raise any exception: KeyError for "!!bool maybe", ValueError for
            # the date 2026-99-99, AttributeError for "!!timestamp soon".
            message = f"has a value of {name.value} that does not fit its YAML tag"
            raise _UnreadableFileError(message, line) from None
    return entries
