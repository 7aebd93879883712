"""LMCache's table of configuration keys, and its own checks of a configuration.

LMCache has no public interface for most of them. Every function imports LMCache when it is called:
that import loads torch and takes seconds.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
    from lmcache.v1.config import _CONFIG_DEFINITIONS

    return {
        name: Definition(
            row["type"], row["default"], row.get("description", ""), row.get("env_converter")
        )
        for name, row in _CONFIG_DEFINITIONS.items()
    }


def aliases() -> Mapping[str, str]:
    """The current name of each key that LMCache has renamed, by its former name."""
    from lmcache.v1.config import _CONFIG_ALIASES

    aliases: dict[str, str] = _CONFIG_ALIASES
    return aliases


@functools.cache
def variables_in_source() -> frozenset[str]:
    """Every ``LMCACHE_*`` name in LMCache's source. A name that ends in ``_`` is a prefix.

    LMCache reads some variables outside its table of keys, its log level for one, and has no list
    of them.
    """
    import lmcache

    found: set[str] = set()
    for path in Path(lmcache.__path__[0]).rglob("*.py"):
        found.update(re.findall(r"[\"'](LMCACHE_[A-Z0-9_]+)[\"']", path.read_text("utf-8")))
    return frozenset(found)


def effective_values(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Every value of the configuration that LMCache makes of ``values``.

    Raises:
        ValueError: LMCache refuses the values. The text is LMCache's reason. For an assertion
            without a text, the reason is the line of the assertion.
    """
    from lmcache.v1.config import LMCacheEngineConfig

    try:
        used: Mapping[str, Any] = LMCacheEngineConfig.from_defaults(**values).validate().to_dict()
    except (ValueError, AssertionError) as error:
        line = traceback.extract_tb(error.__traceback__)[-1].line
        raise ValueError(str(error) or line or type(error).__name__) from error
    return used


def cache_policies() -> tuple[str, ...]:
    """The values of ``cache_policy``, in upper case."""
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
    from lmcache.v1.storage_backend import connector

    found = []
    for module in pkgutil.iter_modules(connector.__path__):
        if module.name.endswith("_adapter"):
            content = vars(importlib.import_module(f"{connector.__name__}.{module.name}"))
            found += [
                value()
                for value in content.values()
                if inspect.isclass(value)
                and issubclass(value, connector.ConnectorAdapter)
                and value.__module__.endswith(module.name)
            ]
    return tuple(found)
