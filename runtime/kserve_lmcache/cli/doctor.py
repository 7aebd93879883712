"""``kserve-lmcache doctor``: checks this machine, the model and the remote store."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kserve_lmcache.cli import termination_log
from kserve_lmcache.cli.parser import Parser
from kserve_lmcache.config import local_tier, rules
from kserve_lmcache.config.configuration import Configuration
from kserve_lmcache.config.credentials import remote_of
from kserve_lmcache.config.flags import add_setting_flags, flags_of
from kserve_lmcache.config.memory_budget import Needs
from kserve_lmcache.config.resolve import resolve
from kserve_lmcache.config.resources import memory_limit
from kserve_lmcache.doctor.check import Finding, failure, ok
from kserve_lmcache.doctor.context import context_of
from kserve_lmcache.doctor.machine import connector_check
from kserve_lmcache.doctor.report import as_json, exit_code, failures, table
from kserve_lmcache.doctor.run import CHECKS, examine
from kserve_lmcache.identity.namespace import hashing_of
from kserve_lmcache.redaction import redact_urls
from kserve_lmcache.server.announcement import Replica

_TIMEOUT = 10.0  # seconds
_ENGINE_TIMEOUT = 60.0


def run(argv: Sequence[str]) -> tuple[str, int]:
    """Runs the checks.

    Returns:
        The report, and the exit code: 1 when a check failed, else 0.

    Raises:
        UsageError: a flag is unknown, or its value is invalid.
    """
    args = build_parser().parse_args(argv)
    start = time.monotonic()
    device = "cuda" if Path("/proc/driver/nvidia/version").exists() else "cpu"
    configuration = resolve(flags_of(args), os.environ, device, checks=rules.FAST)
    configuration.values.setdefault(
        "max_local_cpu_size", local_tier.default_size(memory_limit(), Needs(device))
    )
    remote = remote_of(configuration)
    seconds = time.monotonic() - start
    findings = [
        replace(finding, name="configuration", seconds=seconds) for finding in _judge(configuration)
    ]
    context = context_of(
        configuration,
        environ=os.environ,
        remote=remote,
        model=args.model_id or (args.model_dir if Path(args.model_dir).is_dir() else None),
        revision=args.model_revision,
        replica=None
        if configuration.problems
        else Replica(hashing_of(configuration.get, os.environ)),
    )
    timeout = args.timeout or (_ENGINE_TIMEOUT if args.engine else _TIMEOUT)
    # The process ends before the check does, so that the check can report it.
    checks = (connector_check(0.9 * timeout), *CHECKS) if args.engine else CHECKS
    findings += examine(context, checks, timeout, patient=True)
    if (reasons := failures(findings)) and termination_log.is_of_this_process():
        termination_log.write(reasons)
    text = as_json(findings) if args.json else table(findings, colour=_is_terminal())
    return text, exit_code(findings)


def build_parser() -> argparse.ArgumentParser:
    """The parser of this command's flags."""
    parser = Parser(
        prog="kserve-lmcache doctor",
        description="Checks this machine, the model and the remote store, as a server needs them.",
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
    parser.add_argument("--model_id", "--model-id", help="hub id or directory of the model")
    parser.add_argument(
        "--model_dir", "--model-dir", default="/mnt/models", help="directory without --model_id"
    )
    parser.add_argument("--model_revision", "--model-revision", help="revision of the hub id")
    add_setting_flags(parser)
    return parser


def _judge(configuration: Configuration) -> list[Finding]:
    if configuration.problems:
        return [
            failure(redact_urls(f"{problem.source}: {problem.message}"), problem.fix)
            for problem in configuration.problems
        ]
    count = len(configuration.lmcache_values())
    notes = "".join(f"; {redact_urls(note)}" for note in configuration.notes)
    return [ok(f"{count} keys of LMCache are set or defaulted{notes}")]


def _is_terminal() -> bool:
    return sys.__stdout__ is not None and sys.__stdout__.isatty() and "NO_COLOR" not in os.environ
