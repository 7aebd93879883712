"""The ``kserve-lmcache`` command."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from kserve_lmcache import logs
from kserve_lmcache.config import environment
from kserve_lmcache.errors import KServeLMCacheError

# A container's own terminationMessagePath.
TERMINATION_LOG = "TERMINATION_LOG"
_COMMANDS = ("serve", "config", "doctor", "bench", "demo-model")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; without one, ``serve``, so that an image's args are just flags.

    Returns:
        The exit code: 0, 1 (it failed), 2 (it was asked for something impossible) or 130 (a
        benchmark was ended before its time).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments and arguments[0] in _COMMANDS else "serve"
    try:
        if command == "demo-model":
            from kserve_lmcache.cli.demo_model import run as run_demo_model

            run_demo_model(arguments)
            return 0
        if command == "bench":
            from kserve_lmcache.cli.bench import run as run_bench

            text, exit_code = run_bench(arguments)
            print(text)
            return exit_code
        if command in ("config", "doctor"):
            # vLLM and LMCache log to the standard output, which is the answer's alone here.
            with contextlib.redirect_stdout(sys.stderr):
                if command == "config":
                    from kserve_lmcache.cli.config import run as run_config

                    text, exit_code = run_config(arguments), 0
                else:
                    from kserve_lmcache.cli.doctor import run as run_doctor

                    text, exit_code = run_doctor(arguments)
            print(text)
            return exit_code
        environment.ensure()
        levels = logs.LibraryLevels(os.environ)
        levels.set(os.environ.get(logs.LEVEL_VARIABLE, ""))
        logs.configure(os.environ)
        from kserve_lmcache.cli.serve import run as run_serve

        run_serve(arguments, levels)
        return 0
    except KServeLMCacheError as error:
        print(f"kserve-lmcache: error: {error}", file=sys.stderr, flush=True)
        if command == "serve":
            _tell_kubernetes(str(error))
        return error.exit_code


def _tell_kubernetes(reason: str) -> None:
    """Write why the server ended to where `kubectl describe pod` finds it, in a pod."""
    path = Path(os.environ.get(TERMINATION_LOG, "/dev/termination-log"))
    with contextlib.suppress(OSError):
        if path.exists():
            path.write_text(reason)
