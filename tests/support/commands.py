"""``kserve-lmcache`` with no setting of the product but those of the test."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from subprocess import CompletedProcess
from unittest.mock import patch

from kserve_lmcache.cli.main import main
from tests.support.server import engine_environment


def run(*arguments: str, **environ: str) -> CompletedProcess[str]:
    """As a shell does; importing vLLM, where a command needs it, takes many seconds."""
    return subprocess.run(
        [sys.executable, "-m", "kserve_lmcache", *arguments],
        env=engine_environment(**environ),
        capture_output=True,
        text=True,
        check=False,
    )


def run_here(*arguments: str, **environ: str) -> CompletedProcess[str]:
    """In this process: for what does not depend on how a process starts."""
    output, errors = io.StringIO(), io.StringIO()
    with (
        patch.dict(os.environ, engine_environment(**environ), clear=True),
        redirect_stdout(output),
        redirect_stderr(errors),
    ):
        exit_code = main(arguments)
    return CompletedProcess(arguments, exit_code, output.getvalue(), errors.getvalue())
