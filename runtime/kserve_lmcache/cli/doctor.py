"""``kserve-lmcache doctor``: checks this machine, the model and the remote store."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kserve_lmcache.cli import examination, running
from kserve_lmcache.cli.examination import Examination
from kserve_lmcache.cli.parser import Parser
from kserve_lmcache.doctor.check import Finding, failure, ok
from kserve_lmcache.doctor.context import LARGEST_CHUNK_BYTES, context_of
from kserve_lmcache.doctor.machine import connector_check
from kserve_lmcache.doctor.report import as_json, exit_code, failures, table
from kserve_lmcache.doctor.run import CHECKS
from kserve_lmcache.doctor.run import examine as examine_machine
from kserve_lmcache.errors import UsageError
from kserve_lmcache.identity.namespace import hashing_of
from kserve_lmcache.redaction import redact_text
from kserve_lmcache.server import termination_log
from kserve_lmcache.server.announcement import Replica

_TIMEOUT = 10.0  # seconds
_ENGINE_TIMEOUT = 60.0


def run(argv: Sequence[str]) -> tuple[str, int]:
    """Runs the checks.

    Returns:
        The report, and the exit code: 1 when a check failed, else 0.

    Raises:
        UsageError: a flag is unknown, its value is invalid, or several servers run.
    """
    own, flags = build_parser().parse_known_args(argv)
    start = time.monotonic()
    found = _examined(own, flags)
    seconds = time.monotonic() - start
    findings = [
        replace(finding, name=finding.name or "configuration", seconds=seconds)
        for finding in (*_judge(found), *found.findings)
    ]
    args, configuration = found.args, found.configuration
    context = context_of(
        configuration,
        found.shape,
        environ=os.environ,
        remote=found.remote,
        model=args.model_id
        or args.model_tag
        or args.model
        or (args.model_dir if Path(args.model_dir).is_dir() else None),
        revision=args.model_revision or args.revision,
        replica=None
        if configuration.problems
        else Replica(hashing_of(configuration.get, os.environ)),
    )
    if not own.engine:
        chunk_bytes = min(context.chunk_bytes, LARGEST_CHUNK_BYTES)
        context = replace(context, chunk_bytes=chunk_bytes)
    timeout = own.timeout or (_ENGINE_TIMEOUT if own.engine else _TIMEOUT)
    # The process ends before the check does, so that the check can report it.
    checks = (connector_check(0.9 * timeout), *CHECKS) if own.engine else CHECKS
    findings += examine_machine(context, checks, timeout, patient=True)
    if (reasons := failures(findings)) and termination_log.is_of_this_process():
        termination_log.write(reasons)
    text = as_json(findings) if own.json else table(findings, colour=_is_terminal())
    return text, exit_code(findings)


def _examined(own: argparse.Namespace, flags: Sequence[str]) -> Examination:
    """What the checks are about: a running server, or a server with these flags."""
    if own.engine:
        if own.pid is not None:
            raise UsageError("--pid has no effect with --engine, which looks at flags")
        # Importing the module imports vLLM.
        from kserve_lmcache.cli import engine_examination

        return engine_examination.examine_flags(flags)
    if server := running.chosen(flags, own.pid):
        return examination.examine_server(server)
    return examination.examine_flags(flags)


def build_parser() -> argparse.ArgumentParser:
    """The parser of this command's flags."""
    parser = Parser(
        prog="kserve-lmcache doctor",
        description="Checks this machine, the model and the remote store, as the server that runs "
        "here needs them. Takes every flag of serve as well, and checks for a server with these "
        "flags then.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--timeout",
        type=float,
        help="seconds for all checks together (10; with --engine 60). A store that does not answer "
        "is tried again within this time",
    )
    running.add_flags(
        parser,
        "also check vLLM's flags and the model, and load the connector in a process of its own, as "
        "the engine does. Importing vLLM takes many seconds and 1.2 GiB",
    )
    return parser


def _judge(found: Examination) -> list[Finding]:
    configuration = found.configuration
    if configuration.problems:
        return [
            failure(redact_text(f"{problem.source}: {problem.message}"), problem.fix)
            for problem in configuration.problems
        ]
    count = len(configuration.lmcache_values())
    origin = [found.origin] if found.origin else []
    notes = "".join(f"; {redact_text(note)}" for note in (*configuration.notes, *origin))
    return [ok(f"{count} keys of LMCache are set or defaulted{notes}")]


def _is_terminal() -> bool:
    return sys.__stdout__ is not None and sys.__stdout__.isatty() and "NO_COLOR" not in os.environ
