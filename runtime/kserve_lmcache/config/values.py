"""Parses the text or the YAML value of a key."""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from kserve_lmcache.config.keys import Key

_TRUE = {"true", "1", "yes", "on"}
_FALSE = {"false", "0", "no", "off"}
# The suffixes of Kubernetes, in bytes (https://kubernetes.io/docs/reference/kubernetes-api/
# common-definitions/quantity/).
_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_NAMES: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    bool: "a boolean (true, false, yes, no, on, off, 1, 0)",
}
_LARGEST_MAPPING = 10_000  # values: a few lines with YAML aliases can make billions


def parse(key: Key, raw: Any) -> Any:
    """The value of a key, of the key's type and as LMCache uses it.

    Args:
        key: the key.
        raw: a text, or a value that YAML or JSON gives.

    Raises:
        ValueError: the value has another type. The text continues the key's name.
        OverflowError, TypeError: LMCache's conversion refuses the value.
    """
    kind, optional = _unwrap_optional(key.type)
    if raw is None or (optional and raw == ""):
        if optional or key.default is None:
            return None
        raise ValueError("is empty")
    value = _parse(kind, key.name, raw)
    if key.convert is None or value is None:
        return value
    return key.convert(value)


def is_size(key: Key) -> bool:
    """Whether a key is a size in GB of 2**30 bytes. A size may have a unit, such as ``512Mi``."""
    kind, _ = _unwrap_optional(key.type)
    return kind is float and key.name.endswith("_size")


def unquote(text: str) -> str:
    """The text of a variable without the quotes around it. LMCache removes them too."""
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text


def _unwrap_optional(kind: Any) -> tuple[Any, bool]:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(kind) if member is not type(None)]
        if len(members) == 1:
            return members[0], True
    return kind, False


def _parse(kind: Any, name: str, raw: Any) -> Any:
    origin = typing.get_origin(kind) or kind
    if origin is list:
        (item,) = typing.get_args(kind) or (str,)
        if isinstance(raw, dict):
            raise ValueError("is a mapping, but must be a list")
        parts = raw if isinstance(raw, list) else [part.strip() for part in str(raw).split(",")]
        return [_scalar(item, part) for part in parts if part != ""]
    if origin is dict:
        return _mapping(raw)
    if kind is float and name.endswith("_size"):
        return _size(raw)
    return _scalar(kind, raw)


def _scalar(kind: type[Any], raw: Any) -> Any:
    if isinstance(raw, dict | list | None):
        raise ValueError(f"is a {type(raw).__name__}, but must be {_NAMES[kind]}")
    if kind is str:
        if not isinstance(raw, str | int | float) or isinstance(raw, bool):
            raise ValueError(f"is {raw!r}, but must be a string: put it in quotes")
        return str(raw)
    text = str(raw).strip()
    if kind is bool and text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    try:
        if kind is bool or isinstance(raw, bool):
            raise ValueError
        value = kind(text)
    except ValueError:
        raise ValueError(f"{_shorten(text)} is not {_NAMES[kind]}") from None
    if isinstance(value, float) and math.isnan(value):
        raise ValueError("is not a number")
    return value


def _size(raw: Any) -> float:
    text = str(raw).strip()
    for unit, factor in _UNITS.items():
        if text.endswith(unit):
            return float(_scalar(float, text.removesuffix(unit))) * factor / 2**30
    return float(_scalar(float, raw))


def _mapping(raw: Any) -> dict[str, Any]:
    if isinstance(raw, str):
        try:
            raw = json.loads(raw)
        except json.JSONDecodeError as error:
            raise ValueError(f"is not JSON ({error})") from None
        except RecursionError:
            raise ValueError("is nested too deeply") from None
    if not isinstance(raw, dict):
        raise ValueError(f"is a {type(raw).__name__}, but must be a mapping")
    _check_mapping(raw)
    return raw


def _check_mapping(root: dict[Any, Any]) -> None:
    waiting: list[tuple[Any, int]] = [(root, 0)]
    count = 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if depth > 20 or count > _LARGEST_MAPPING:
            raise ValueError("is nested too deeply or too large")
        if isinstance(value, dict):
            for name in value:
                if not isinstance(name, str):
                    raise ValueError(f"has the key {_shorten(str(name))}: put it in quotes")
            waiting.extend((inner, depth + 1) for inner in value.values())
        elif isinstance(value, list):
            waiting.extend((inner, depth + 1) for inner in value)
        elif not isinstance(value, str | int | float | bool | None):
            raise ValueError(f"has a {type(value).__name__} in it: put it in quotes")


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}…")
