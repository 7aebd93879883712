"""The flags of ``serve`` as far as they can be read without vLLM, whose parser has most of them.

What decides the configuration and the checks of ``config`` and ``doctor`` is read. The other flags
are taken, and not checked.
"""

from __future__ import annotations

import argparse
import json
import re
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import yaml

from kserve_lmcache.cli.argument_rules import (
    DEFAULT_MODEL_DIRECTORY,
    refuse_blanks,
    stray_words,
    unquote,
)
from kserve_lmcache.cli.parser import Parser
from kserve_lmcache.config.flags import add_setting_flags
from kserve_lmcache.errors import UsageError

_FLAG = re.compile(r"--[A-Za-z][\w.-]*")
_TRUE, _FALSE = ("y", "yes", "t", "true", "on", "1"), ("n", "no", "f", "false", "off", "0")
# vLLM's flag for a file of flags.
_FILE = "--config"
_TEXTS = (
    "model_id",
    "model",
    "model_revision",
    "revision",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_ca_certs",
    "load_format",
    "kv_offloading_size",
)


def parse_lightly(argv: Sequence[str]) -> tuple[Namespace, list[str]]:
    """Parse the server's arguments (without the program's name).

    Returns:
        The arguments that decide the configuration, and the names of the flags that were not
        checked.

    Raises:
        UsageError: a bad value, or an argument that no parser would take.
    """
    refuse_blanks(argv)
    arguments = [_with_dashes(unquote(argument)) for argument in argv]
    word = arguments.pop(0) if arguments and not arguments[0].startswith("-") else None
    args, others = _build_parser().parse_known_args([*_of_file(arguments), *arguments])
    args.model_tag = word
    if problems := list(stray_words(args)):
        raise UsageError("; ".join(problems))
    flags = (match[0] for match in map(_FLAG.match, others) if match)
    return args, [flag for flag in dict.fromkeys(flags) if flag != _FILE]


def _build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="kserve-lmcache", add_help=False, allow_abbrev=False)
    for name in _TEXTS:
        parser.add_argument(f"--{name.replace('_', '-')}", default=None)
    parser.add_argument("--model-dir", default=DEFAULT_MODEL_DIRECTORY)
    parser.add_argument("--log-config-file", dest="kserve_log_config_file")
    parser.add_argument("--enable-grpc", type=_boolean, default=False)
    parser.add_argument("--api-key", nargs="*")
    parser.add_argument("--ssl-cert-reqs", type=int, default=0)
    parser.add_argument("--kv-transfer-config", type=_connector)
    parser.add_argument("--kv-events-config", type=_events)
    add_setting_flags(parser)
    return parser


def _boolean(text: str) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() in _TRUE


def _connector(text: str) -> SimpleNamespace:
    """As much of vLLM's ``KVTransferConfig`` as decides the configuration."""
    try:
        content = json.loads(text)
        name, extra = content.get("kv_connector"), content.get("kv_connector_extra_config")
        return SimpleNamespace(kv_connector=name, kv_connector_extra_config=dict(extra or {}))
    except (ValueError, TypeError, AttributeError):
        # The text may hold a password.
        raise argparse.ArgumentTypeError("is no mapping in JSON") from None


def _events(text: str) -> SimpleNamespace:
    """As much of vLLM's ``KVEventsConfig`` as decides the configuration."""
    try:
        content = json.loads(text)
        names = ("enable_kv_cache_events", "publisher")
        return SimpleNamespace(**{name: content.get(name) for name in names})
    except (ValueError, AttributeError):
        raise argparse.ArgumentTypeError("is no mapping in JSON") from None


def _with_dashes(argument: str) -> str:
    """The argument with dashes in its flag, as vLLM's parser reads it."""
    flag, sign, value = argument.partition("=")
    if not flag.startswith("--"):
        return argument
    name, dot, rest = flag.partition(".")
    return f"{name.replace('_', '-')}{dot}{rest}{sign}{value}"


def _file_in(arguments: Sequence[str]) -> str | None:
    for position, argument in enumerate(arguments):
        flag, sign, value = argument.partition("=")
        if flag == _FILE:
            return value if sign else next(iter(arguments[position + 1 :]), None)
    return None


def _of_file(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments in the file that ``--config`` names, as vLLM reads it."""
    path = _file_in(arguments)
    if path is None:
        return
    try:
        content = yaml.safe_load(Path(path).read_text("utf-8"))
        entries = list(dict(content).items())
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        # The text of the error may quote the file.
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise UsageError(f"{_FILE} {path} is no file of flags in YAML ({reason})") from None
    for name, value in entries:
        flag = _with_dashes(f"--{name}")
        if isinstance(value, bool):
            yield from [flag] if value else []
        elif isinstance(value, dict):
            yield from (flag, json.dumps(value))
        elif isinstance(value, list):
            yield from (flag, *map(str, value)) if value else ()
        else:
            yield from (flag, str(value))
