"""``kserve-lmcache doctor``: is everything there that offloading needs?"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from kserve_lmcache.config import local_tier, rules
from kserve_lmcache.config.configuration import Configuration
from kserve_lmcache.config.credentials import remote_of
from kserve_lmcache.config.disk_tier import disk_of
from kserve_lmcache.config.flags import add_setting_flags, flags_of
from kserve_lmcache.config.resolve import resolve
from kserve_lmcache.config.resources import memory_limit
from kserve_lmcache.doctor import engine
from kserve_lmcache.doctor.check import Finding, Subject, failure, ok
from kserve_lmcache.doctor.report import as_json, exit_code, table
from kserve_lmcache.doctor.run import CHECKS, examine
from kserve_lmcache.errors import UsageError
from kserve_lmcache.identity.namespace import hashing_of
from kserve_lmcache.redaction import redact_urls
from kserve_lmcache.server.announcement import Replica

_CONFIGURATION = "configuration"
_TIMEOUT = 10.0  # seconds
_ENGINE_TIMEOUT = 60.0


def run(argv: Sequence[str]) -> tuple[str, int]:
    """Examine this machine and the remote store.

    Returns:
        The report, and 1 when something failed, else 0.

    Raises:
        UsageError: a flag is unknown or has no such value.
    """
    args = build_parser().parse_args(argv)
    start = time.monotonic()
    device = "cuda" if Path("/proc/driver/nvidia/version").exists() else "cpu"
    configuration = resolve(flags_of(args), os.environ, device, checks=rules.FAST)
    configuration.values.setdefault(
        "max_local_cpu_size", local_tier.default_size(memory_limit(), device, workers=1)
    )
    remote = remote_of(configuration)
    findings = [
        replace(finding, seconds=time.monotonic() - start) for finding in _judge(configuration)
    ]
    subject = Subject(
        environ=os.environ,
        remote=remote,
        local_cpu_bytes=configuration.get("max_local_cpu_size") * local_tier.GIB,
        disk=disk_of(configuration),
        model=args.model_id or (args.model_dir if Path(args.model_dir).is_dir() else None),
        revision=args.model_revision,
        model_fingerprint=configuration.get("model_fingerprint"),
        replica=None
        if configuration.problems
        else Replica(hashing_of(configuration.get, os.environ)),
    )
    timeout = args.timeout or (_ENGINE_TIMEOUT if args.engine else _TIMEOUT)
    # A little less for the process, so that it is ended before its check is given up.
    checks = (engine.check(0.9 * timeout), *CHECKS) if args.engine else CHECKS
    findings += examine(subject, checks, timeout)
    text = as_json(findings) if args.json else table(findings, colour=_is_terminal())
    return text, exit_code(findings)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def build_parser() -> argparse.ArgumentParser:
    """The parser of this command's flags."""
    parser = _Parser(
        prog="kserve-lmcache doctor",
        description="Looks at this machine and at the remote store, as a server here would.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--timeout", type=float, help="seconds for all checks together (10; with --engine 60)"
    )
    parser.add_argument(
        "--engine",
        action="store_true",
        help="also load the connector in a process of its own, as the engine does: importing vLLM "
        "alone takes seconds",
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
            failure(
                _CONFIGURATION, redact_urls(f"{problem.source}: {problem.message}"), problem.fix
            )
            for problem in configuration.problems
        ]
    count = len(configuration.lmcache_values())
    notes = "".join(f"; {redact_urls(note)}" for note in configuration.notes)
    return [ok(_CONFIGURATION, f"{count} keys of LMCache are set or defaulted{notes}")]


def _is_terminal() -> bool:
    return sys.__stdout__ is not None and sys.__stdout__.isatty() and "NO_COLOR" not in os.environ
