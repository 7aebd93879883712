"""``kserve-lmcache doctor``: checks this machine, the model and the remote store."""

from __future__ import annotations

import argparse
import os
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kserve_lmcache.cli.arguments import parse_arguments
from kserve_lmcache.cli.parser import Parser
from kserve_lmcache.config.configuration import Configuration
from kserve_lmcache.config.engine_shape import EngineShape
from kserve_lmcache.config.memory_budget import Needs
from kserve_lmcache.config.stores import Remote
from kserve_lmcache.doctor.check import Finding, failure, ok
from kserve_lmcache.doctor.context import context_of
from kserve_lmcache.doctor.machine import connector_check
from kserve_lmcache.doctor.report import as_json, exit_code, failures, table
from kserve_lmcache.doctor.run import CHECKS
from kserve_lmcache.doctor.run import examine as examine_machine
from kserve_lmcache.engine.arguments import device
from kserve_lmcache.engine.plan import complete, examine, resolve_configuration
from kserve_lmcache.engine.validation import check_arguments
from kserve_lmcache.errors import KServeLMCacheError
from kserve_lmcache.identity.namespace import hashing_of
from kserve_lmcache.redaction import redact_text
from kserve_lmcache.server import termination_log
from kserve_lmcache.server.announcement import Replica

_FIX_FLAGS = "Correct the flags or the variables: no server starts with them."
_FIX_MODEL = "Serve another model, or this one with --offload=off."
_TIMEOUT = 10.0  # seconds
_ENGINE_TIMEOUT = 60.0


def run(argv: Sequence[str]) -> tuple[str, int]:
    """Runs the checks.

    Returns:
        The report, and the exit code: 1 when a check failed, else 0.

    Raises:
        UsageError: a flag is unknown, or its value is invalid.
    """
    own, rest = build_parser().parse_known_args(argv)
    args = parse_arguments(rest)
    start = time.monotonic()
    configuration = resolve_configuration(args, os.environ)
    refused, shape, remote = _examined(args, configuration)
    seconds = time.monotonic() - start
    findings = [
        replace(finding, name=finding.name or "configuration", seconds=seconds)
        for finding in (*_judge(configuration), *refused)
    ]
    context = context_of(
        configuration,
        shape,
        environ=os.environ,
        remote=remote,
        model=args.model_id
        or args.model_tag
        or args.model
        or (args.model_dir if Path(args.model_dir).is_dir() else None),
        revision=args.model_revision,
        replica=None
        if configuration.problems
        else Replica(hashing_of(configuration.get, os.environ)),
    )
    timeout = own.timeout or (_ENGINE_TIMEOUT if own.engine else _TIMEOUT)
    # The process ends before the check does, so that the check can report it.
    checks = (connector_check(0.9 * timeout), *CHECKS) if own.engine else CHECKS
    findings += examine_machine(context, checks, timeout, patient=True)
    if (reasons := failures(findings)) and termination_log.is_of_this_process():
        termination_log.write(reasons)
    text = as_json(findings) if own.json else table(findings, colour=_is_terminal())
    return text, exit_code(findings)


def _examined(
    args: Namespace, configuration: Configuration
) -> tuple[list[Finding], EngineShape | None, Remote | None]:
    """What a server would refuse beside the configuration; the engine's sizes, and the store."""
    findings = []
    try:
        check_arguments(args, os.environ)
    except KServeLMCacheError as error:
        findings.append(failure(redact_text(str(error)), _FIX_FLAGS, name="arguments"))
    try:
        # A model of the hub is not asked for: it has a check of its own.
        name = args.model_id or args.model_tag or args.model
        shape, remote = examine(args, configuration, os.environ, not name or Path(name).exists())
    except KServeLMCacheError as error:
        findings.append(failure(redact_text(str(error)), _FIX_MODEL, name="model"))
        return findings, None, complete(configuration, None, Needs(device()))
    return findings, shape, remote


def build_parser() -> argparse.ArgumentParser:
    """The parser of this command's flags."""
    parser = Parser(
        prog="kserve-lmcache doctor",
        description="Checks this machine, the model and the remote store, as a server needs them. "
        "Takes every flag of serve as well.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--timeout",
        type=float,
        help="seconds for all checks together (10; with --engine 60). A store that does not answer "
        "is tried again within this time",
    )
    parser.add_argument(
        "--engine",
        action="store_true",
        help="also load the connector in a process of its own, as the engine does. Importing vLLM "
        "takes seconds",
    )
    return parser


def _judge(configuration: Configuration) -> list[Finding]:
    if configuration.problems:
        return [
            failure(redact_text(f"{problem.source}: {problem.message}"), problem.fix)
            for problem in configuration.problems
        ]
    count = len(configuration.lmcache_values())
    notes = "".join(f"; {redact_text(note)}" for note in configuration.notes)
    return [ok(f"{count} keys of LMCache are set or defaulted{notes}")]


def _is_terminal() -> bool:
    return sys.__stdout__ is not None and sys.__stdout__.isatty() and "NO_COLOR" not in os.environ
