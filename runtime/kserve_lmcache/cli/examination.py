"""What ``config`` and ``doctor`` find without vLLM, in little memory: beside a server, or alone."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from kserve_lmcache.cli.light_arguments import parse_lightly
from kserve_lmcache.config import server_file
from kserve_lmcache.config.completion import complete
from kserve_lmcache.config.configuration import Configuration, Shown, Value
from kserve_lmcache.config.device import device_of_packages
from kserve_lmcache.config.engine_shape import EngineShape
from kserve_lmcache.config.memory_budget import Needs
from kserve_lmcache.config.server_file import RunningServer
from kserve_lmcache.config.stores import Remote
from kserve_lmcache.doctor.check import Finding, failure, warning
from kserve_lmcache.engine.resolution import has_model, resolve_arguments
from kserve_lmcache.engine.validation import check_arguments
from kserve_lmcache.errors import KServeLMCacheError, UsageError
from kserve_lmcache.redaction import redact_text

FIX_FLAGS = "Correct the flags or the variables: no server starts with them."
# Their defaults depend on the sizes of the model, which vLLM finds out.
SIZES = ("max_local_cpu_size", "remote_queue_size")
# How many workers there are may depend on the machine as well.
_OF_ONE_WORKER = (
    "max_local_cpu_size holds for one worker: several workers share kvCacheOffloading.cpu"
)


@dataclass
class Examination:
    """What a server of these flags has.

    Attributes:
        args: the server's arguments.
        configuration: the configuration with its problems.
        shape: the sizes of the engine's KV cache, if they are known.
        remote: the remote store, if there is one.
        findings: what beside the configuration is wrong.
        origin: whose configuration it is, or what was left out; a sentence.
    """

    args: Namespace
    configuration: Configuration
    shape: EngineShape | None = None
    remote: Remote | None = None
    findings: list[Finding] = field(default_factory=list)
    origin: str = ""


def shown_of(server: RunningServer) -> Shown:
    """The configuration of a running server."""
    note = f"This is the configuration of the running server: {server}"
    return replace(server.shown, notes=[*server.shown.notes, note])


def shown_of_flags(flags: Sequence[str]) -> Shown:
    """The configuration of a server with these flags, without what vLLM alone knows.

    Raises:
        ConfigurationError: the configuration has problems.
        UsageError: a flag cannot be used.
    """
    args, unchecked = parse_lightly(flags)
    check_arguments(args, os.environ, asks_vllm=False)
    configuration, _ = _completed(args)
    configuration.raise_problems()
    configuration.notes.append(_left_out(has_model(args), unchecked))
    if configuration.local_tier_total is not None:
        configuration.notes.append(_OF_ONE_WORKER)
    shown = configuration.shown()
    if not has_model(args) or not _is_default(shown.values["max_local_cpu_size"]):
        return shown
    values = {
        name: value
        for name, value in shown.values.items()
        if name not in SIZES or not _is_default(value)
    }
    return replace(shown, values=values)


def _is_default(value: Value) -> bool:
    return value.source.startswith("default")


def examine_flags(flags: Sequence[str]) -> Examination:
    """Everything that the doctor looks at, of a server with these flags.

    Raises:
        UsageError: a flag cannot be used.
    """
    args, unchecked = parse_lightly(flags)
    configuration, remote = _completed(args)
    origin = _left_out(has_model(args), unchecked)
    return Examination(args, configuration, None, remote, _refused(args), origin)


def examine_server(server: RunningServer) -> Examination:
    """Everything that the doctor looks at, of a running server.

    Its secrets come from where the server has them: variables, files and its own flags.

    Raises:
        UsageError: the server's flags cannot be read.
    """
    flags = server_file.flags_of(server.pid)
    if flags is None:
        raise UsageError(
            f"the flags of the running server cannot be read: {server}. Give the doctor the "
            "server's flags"
        )
    args, _ = parse_lightly(flags)
    sizes = {name: server.shown.values[name] for name in SIZES if name in server.shown.values}
    configuration, remote = _completed(args, sizes)
    findings = [*_refused(args), *_changes(configuration, server)]
    origin = f"of the running server: {server}"
    return Examination(args, configuration, server.shape, remote, findings, origin)


def _changes(configuration: Configuration, server: RunningServer) -> Iterator[Finding]:
    """What a restart would change in the server: its files or variables are not what they were."""
    before, now = server.shown.values, configuration.redacted()
    changed = [
        name
        for name in dict.fromkeys((*before, *now))
        if name not in SIZES and _text(before.get(name)) != _text(now.get(name))
    ]
    if changed:
        yield warning(
            f"{', '.join(changed)}: the running server has other values than its file and its "
            "variables have now",
            "Restart the server, or set them back.",
            name="changes",
        )


def _text(value: Value | None) -> str:
    return "" if value is None else json.dumps(value.value, sort_keys=True, default=str)


def _completed(
    args: Namespace, sizes: Mapping[str, Value] = MappingProxyType({})
) -> tuple[Configuration, Remote | None]:
    """The configuration and the remote store.

    Args:
        args: the server's arguments.
        sizes: those that a running server has found out; they replace defaults.
    """
    device = device_of_packages()
    configuration = resolve_arguments(args, os.environ, device)
    for name, value in sizes.items():
        if _is_default(value):
            configuration.values[name] = Value(value.value, f"the running server's {value.source}")
    return configuration, complete(configuration, None, Needs(device))


def _refused(args: Namespace) -> list[Finding]:
    try:
        check_arguments(args, os.environ, asks_vllm=False)
    except KServeLMCacheError as error:
        return [failure(redact_text(str(error)), FIX_FLAGS, name="arguments")]
    return []


def _left_out(has_a_model: bool, unchecked: Sequence[str]) -> str:
    """What was not done without vLLM."""
    parts = ["sizes that depend on the model are left out"] if has_a_model else []
    if unchecked:
        parts.append(f"{', '.join(unchecked)} {'is' if len(unchecked) == 1 else 'are'} not checked")
    listed = f": {' and '.join(parts)}" if parts else ""
    return f"vLLM was not asked, which --engine does{listed}"
