"""``kserve-lmcache config``: prints the configuration of the running server, or of flags."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import yaml

from kserve_lmcache.cli import examination, running
from kserve_lmcache.cli.parser import Parser
from kserve_lmcache.config import keys
from kserve_lmcache.config.configuration import Shown, Value
from kserve_lmcache.errors import UsageError


def run(argv: Sequence[str]) -> str:
    """The effective configuration as text, each value with its source.

    Raises:
        KServeLMCacheError: a server with these flags would refuse them, the configuration or the
            model.
        UsageError: several servers run, or ``--explain`` names no key.
    """
    own, flags = build_parser().parse_known_args(argv)
    if own.engine:
        if own.pid is not None:
            raise UsageError("--pid has no effect with --engine, which looks at flags")
        # Importing the module imports vLLM.
        from kserve_lmcache.cli import engine_examination

        shown = engine_examination.shown_of_flags(flags)
    elif server := running.chosen(flags, own.pid):
        shown = examination.shown_of(server)
    else:
        shown = examination.shown_of_flags(flags)
    if own.explain:
        return explain(shown, own.explain)
    return json.dumps(shown.encode(), indent=2) if own.json else as_yaml(shown)


def build_parser() -> argparse.ArgumentParser:
    """The parser of this command's own flags."""
    parser = Parser(
        prog="kserve-lmcache config",
        description="Prints the configuration in force of the server that runs here. Takes every "
        "flag of serve as well, and prints the configuration of a server with these flags then.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of YAML")
    parser.add_argument(
        "--explain", metavar="KEY", help="describe a key and the source of its value"
    )
    running.add_flags(
        parser,
        "also check vLLM's flags and the model, and work out the sizes that depend on the model. "
        "Importing vLLM takes many seconds and 1.2 GiB",
    )
    return parser


def as_yaml(shown: Shown) -> str:
    """A YAML file for a server with the same configuration. Comments name the sources."""
    lines = [f"# {note}" for note in shown.notes]
    for name, value in shown.values.items():
        first, *more = yaml.safe_dump({name: value.value}).splitlines()
        lines += [f"{first}  # {value.source}", *more]
    return "\n".join(lines)


def explain(shown: Shown, name: str) -> str:
    """The description, type, default, value and source of a key.

    Raises:
        UsageError: the key is unknown.
    """
    name = keys.aliases().get(name, name)
    key = keys.table().get(name)
    if key is None:
        raise UsageError(f"{name} is not a key; `kserve-lmcache config` lists those in force")
    default = Value(key.default, "LMCache's default")
    if name in examination.SIZES and "max_local_cpu_size" not in shown.values:
        default = Value("depends on the model", "--engine works it out")
    value = shown.values.get(name, default)
    kind = key.type.__name__ if isinstance(key.type, type) else str(key.type)
    return "\n".join(
        [
            f"{name}: {key.help or 'LMCache has no description of it.'}",
            f"  value    {value.value} ({value.source})",
            f"  type     {kind.replace('typing.', '')}",
            f"  default  {key.default}" + ("" if key.is_setting else " (LMCache's)"),
            f"  variable {key.variable}",
        ]
    )
