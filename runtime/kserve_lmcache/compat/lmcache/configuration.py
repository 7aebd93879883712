"""LMCache's table of configuration keys, and its own checks of a configuration.

LMCache has no public interface for most of them. Importing LMCache loads torch and takes seconds.
The modules that are needed here are executed without the package
(:mod:`kserve_lmcache.compat.source`).
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import logging
import pkgutil
import re
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

from kserve_lmcache.compat.source import directory_of, execute

_CONNECTORS = "lmcache.v1.storage_backend.connector"


@dataclass(frozen=True)
class Definition:
    """A row of LMCache's table of keys.

    Attributes:
        type: the Python type of the value, perhaps ``Optional`` or ``list[...]``.
        default: LMCache's default.
        description: LMCache's own description. Empty for most keys.
        convert: LMCache's conversion of a value. LMCache 0.5.1 has none for two keys.
    """

    type: Any
    default: Any
    description: str
    convert: Callable[[Any], Any] | None


def definitions() -> Mapping[str, Definition]:
    """Every key of LMCache's configuration, by its name."""
    return {
        name: Definition(
            row["type"], row["default"], row.get("description", ""), row.get("env_converter")
        )
        for name, row in _config()._CONFIG_DEFINITIONS.items()
    }


def aliases() -> Mapping[str, str]:
    """The current name of each key that LMCache has renamed, by its former name."""
    aliases: dict[str, str] = _config()._CONFIG_ALIASES
    return aliases


@functools.cache
def _config() -> ModuleType:
    """LMCache's module ``lmcache.v1.config``."""
    folder = directory_of("lmcache") / "v1"
    # Its functions that fetch a configuration from an address are not called.
    given: dict[str, Any] = {
        "lmcache.logging": SimpleNamespace(init_logger=logging.getLogger),
        "requests": SimpleNamespace(),
    }
    base = "lmcache.v1.config_base"
    given[base] = execute(folder / "config_base.py", base, given.get)
    return execute(folder / "config.py", "lmcache.v1.config", given.get)


@functools.cache
def variables_in_source() -> frozenset[str]:
    """Every ``LMCACHE_*`` name in LMCache's source. A name that ends in ``_`` is a prefix.

    LMCache reads some variables outside its table of keys, its log level for one, and has no list
    of them.
    """
    found: set[str] = set()
    for path in directory_of("lmcache").rglob("*.py"):
        found.update(re.findall(r"[\"'](LMCACHE_[A-Z0-9_]+)[\"']", path.read_text("utf-8")))
    return frozenset(found)


def effective_values(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Every value of the configuration that LMCache makes of ``values``.

    Raises:
        ValueError: LMCache refuses the values. The text is LMCache's reason. For an assertion
            without a text, the reason is the line of the assertion.
    """
    made = _config().LMCacheEngineConfig.from_defaults
    try:
        used: Mapping[str, Any] = made(**values).validate().to_dict()
    except (ValueError, AssertionError) as error:
        line = traceback.extract_tb(error.__traceback__)[-1].line
        raise ValueError(str(error) or line or type(error).__name__) from error
    return used


def cache_policies() -> tuple[str, ...]:
    """The values of ``cache_policy``, in upper case."""
    path = directory_of("lmcache") / "v1" / "storage_backend" / "cache_policy" / "__init__.py"
    for node in ast.walk(ast.parse(path.read_bytes())):
        if (
            isinstance(node, ast.AnnAssign)
            and ast.unparse(node.target) == "POLICY_MAPPING"
            and isinstance(node.value, ast.Dict)
        ):
            return tuple(ast.literal_eval(key) for key in node.value.keys if key is not None)
    from lmcache.v1.storage_backend.cache_policy import POLICY_MAPPING

    return tuple(POLICY_MAPPING)


def remote_schemes() -> tuple[str, ...]:
    """The beginning of the URLs that each connector of LMCache takes, such as ``redis://``."""
    return tuple(sorted({adapter.schema for adapter in _adapters()}))


def takes_remote_url(url: str) -> bool:
    """Whether a connector of LMCache takes this URL. Opens no connection."""
    return any(adapter.can_parse(url) for adapter in _adapters())


@functools.cache
def _adapters() -> tuple[Any, ...]:
    """An adapter of LMCache for each kind of remote store."""
    try:
        return tuple(_light_adapters())
    except Exception:  # of a version that was not tried
        return tuple(_imported_adapters())


class _Adapter:
    """As much of LMCache's ``ConnectorAdapter`` as tells which URLs an adapter takes."""

    def __init__(self, schema: str = "") -> None:
        self.schema = schema

    def can_parse(self, url: str) -> bool:
        return self.schema != "" and url.startswith(self.schema)


class _StandIn(ModuleType):
    """A module of LMCache that an adapter imports and does not use before it connects."""

    ConnectorAdapter = _Adapter
    init_logger = staticmethod(logging.getLogger)

    @staticmethod
    def extract_plugin_type(name: str) -> str:
        return name.partition(".")[0]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _light_adapters() -> Iterable[Any]:
    def instead(name: str) -> Any:
        return _StandIn(name) if name.startswith(("lmcache", ".")) else None

    folder = directory_of("lmcache") / "v1" / "storage_backend" / "connector"
    for path in sorted(folder.glob("*_adapter.py")):
        module = execute(path, f"{_CONNECTORS}.{path.stem}", instead)
        yield from _made(module, _Adapter)


def _imported_adapters() -> Iterable[Any]:
    connector = importlib.import_module(_CONNECTORS)
    for found in pkgutil.iter_modules(connector.__path__):
        if found.name.endswith("_adapter"):
            module = importlib.import_module(f"{_CONNECTORS}.{found.name}")
            yield from _made(module, connector.ConnectorAdapter)


def _made(module: ModuleType, base: type[Any]) -> Iterable[Any]:
    """An adapter of each class of the module."""
    for value in vars(module).values():
        is_adapter = inspect.isclass(value) and issubclass(value, base)
        if is_adapter and value.__module__ == module.__name__:
            yield value()
