"""``kserve-lmcache config``: prints the configuration of a server with the same flags."""

from __future__ import annotations

import argparse
import json
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from kserve_lmcache.cli.arguments import parse_arguments
from kserve_lmcache.config import keys
from kserve_lmcache.config.configuration import Configuration, Value
from kserve_lmcache.config.engine_shape import EngineShape
from kserve_lmcache.config.memory_budget import Needs
from kserve_lmcache.engine.arguments import (
    create_engine_config,
    device,
    resolve_engine_arguments,
)
from kserve_lmcache.engine.memory import needs_of
from kserve_lmcache.engine.plan import complete, resolve_configuration
from kserve_lmcache.engine.shape import shape_of
from kserve_lmcache.engine.supported_models import check_supported
from kserve_lmcache.errors import UsageError
from kserve_lmcache.redaction import redact


def run(argv: Sequence[str]) -> str:
    """The effective configuration as text, each value with its source.

    Raises:
        ConfigurationError: the configuration has problems.
        UnsupportedModelError: the model cannot be offloaded.
        UsageError: a flag is unknown, or ``--explain`` names no key.
    """
    own, rest = build_parser().parse_known_args(argv)
    args = parse_arguments(rest)
    configuration = resolve_configuration(args, os.environ)
    shape = _shape(args) if configuration.get("offload") else None
    needs = needs_of(args, device(), os.environ) if shape else Needs(device())
    complete(configuration, shape, needs)
    configuration.raise_problems()
    if shape:
        configuration.notes.append(
            shape.capacity_note(configuration.get("max_local_cpu_size") * 2**30)
        )
    if own.explain:
        return explain(configuration, own.explain)
    if own.json:
        return json.dumps(as_json(configuration), indent=2)
    return as_yaml(configuration)


def build_parser() -> argparse.ArgumentParser:
    """The parser of this command's own flags."""
    parser = argparse.ArgumentParser(
        prog="kserve-lmcache config",
        description="Prints the configuration in force. Takes every flag of serve as well.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of YAML")
    parser.add_argument(
        "--explain", metavar="KEY", help="describe a key and the source of its value"
    )
    return parser


def as_json(configuration: Configuration) -> dict[str, Any]:
    """``{"values": {KEY: {"value": …, "source": …}}, "notes": […]}``, without secrets."""
    return {
        "values": {
            name: {"value": shown.value, "source": shown.source}
            for name, shown in configuration.redacted().items()
        },
        "notes": [redact(note) for note in configuration.notes],
    }


def as_yaml(configuration: Configuration) -> str:
    """A YAML file for a server with the same configuration. Comments name the sources."""
    lines = [f"# {redact(note)}" for note in configuration.notes]
    for name, shown in configuration.redacted().items():
        first, *more = yaml.safe_dump({name: shown.value}).splitlines()
        lines += [f"{first}  # {shown.source}", *more]
    return "\n".join(lines)


def explain(configuration: Configuration, name: str) -> str:
    """The description, type, default, value and source of a key.

    Raises:
        UsageError: the key is unknown.
    """
    name = keys.aliases().get(name, name)
    key = keys.table().get(name)
    if key is None:
        raise UsageError(f"{name} is not a key; `kserve-lmcache config` lists those in force")
    shown = configuration.redacted().get(name) or Value(key.default, configuration.source(name))
    kind = key.type.__name__ if isinstance(key.type, type) else str(key.type)
    return "\n".join(
        [
            f"{name}: {key.help or 'LMCache has no description of it.'}",
            f"  value    {shown.value} ({shown.source})",
            f"  type     {kind.replace('typing.', '')}",
            f"  default  {key.default}" + ("" if key.is_setting else " (LMCache's)"),
            f"  variable {key.variable}",
        ]
    )


def _shape(args: Namespace) -> EngineShape | None:
    """The sizes of the engine's KV cache; ``None`` when there is no model."""
    mounted = Path(args.model_dir)
    is_mounted = mounted.is_dir() and any(mounted.iterdir())
    if not (args.model_id or args.model_tag or args.model or is_mounted):
        return None
    resolve_engine_arguments(args, dict(os.environ))
    engine_config = create_engine_config(args)
    check_supported(engine_config)
    return shape_of(engine_config)
