"""The ``kserve-lmcache`` command: chooses a command and reports its error."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from kserve_lmcache import __version__, logs
from kserve_lmcache.cli import running
from kserve_lmcache.cli.argument_rules import DEFAULT_MODEL_DIRECTORY
from kserve_lmcache.compat import importing
from kserve_lmcache.compat.kserve import import_without_flags
from kserve_lmcache.config import environment, memory_budget, metrics_directory
from kserve_lmcache.config.resources import memory_limit
from kserve_lmcache.errors import KServeLMCacheError, UsageError
from kserve_lmcache.identity import arrival
from kserve_lmcache.redaction import redact_text
from kserve_lmcache.server import termination_log
from kserve_lmcache.server.ending import end

logger = logging.getLogger(__name__)

# Commands that run beside a server, in its memory. They import vLLM only with --engine.
_LIGHT = ("config", "doctor")
_UNEXPECTED = "This is unexpected; KSERVE_LMCACHE_LOG_LEVEL=debug shows the traceback."
# Each command with its line in the help. A command parses its own flags.
COMMANDS = {
    "serve": "serve a model (the default command)",
    "config": "print the effective configuration",
    "doctor": "check this machine, the model and the remote store",
    "cache": "show, delete, load and keep what servers have cached",
    "cache-server": "keep a cache for all servers of this machine",
    "bench": "measure servers with and without offloading",
    "demo-model": "write a small chat model to a directory",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments without the program's name; by default those of this process. Without a
            command they are flags of ``serve``, so that the args of an image are flags alone.

    Returns:
        The exit code: 0; 1 for a failure; 2 for arguments or a configuration that cannot be used;
        130 for a benchmark that was interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments in (["--help"], ["-h"], ["--version"]):
        _parser().parse_args(arguments)
    command = "serve"
    if arguments and arguments[0] in COMMANDS:
        command = str(_parser().parse_args([arguments.pop(0)]).command)
    if command in _LIGHT and argv is None:  # a process of the command's own
        running.go_first()
    try:
        return _run(command, arguments)
    except KServeLMCacheError as error:
        reason, exit_code = str(error), error.exit_code
        logger.debug("The cause of the end", exc_info=True)
    except SystemExit as ended:
        if command != "serve" or ended.code in (None, 0):
            raise
        reason, exit_code = _reason_of_exit(ended.code)
    except KeyboardInterrupt:
        reason, exit_code = "interrupted", 128 + signal.SIGINT
    except Exception as error:
        reason, exit_code = f"{type(error).__name__}: {error}. {_UNEXPECTED}", 1
        logger.debug("The cause of the end", exc_info=True)
    if command == "serve":
        return end(reason, exit_code)
    # It may quote a library that quotes a flag.
    text = redact_text(reason)
    print(f"kserve-lmcache: error: {text}", file=sys.stderr, flush=True)
    if termination_log.is_of_this_process():
        termination_log.write(text)
    return exit_code


def _imports_vllm(command: str, arguments: Sequence[str]) -> bool:
    return command == "serve" or (command in _LIGHT and "--engine" in arguments)


def _choose_metrics_directory(command: str) -> None:
    """Keep this process's metrics apart from a server's, before prometheus_client is imported.

    Raises:
        UsageError: the directory of a server cannot be made.
    """
    if command == "serve":
        metrics_directory.make(os.environ)
        return
    metrics_directory.leave(os.environ)
    if command == "doctor":  # it may load LMCache, which makes a directory of its own otherwise
        with contextlib.suppress(UsageError):
            metrics_directory.make(os.environ)


def _reason_of_exit(code: object) -> tuple[str, int]:
    """Why a library or a signal ended this process, and the exit code."""
    if isinstance(code, str):
        return f"{code}. {_UNEXPECTED}", 1
    number = code if isinstance(code, int) else 1
    if number > 128:
        return f"stopped by {signal.Signals(number - 128).name} during the start", number
    return f"a library ended the process. {_UNEXPECTED}", number


def _parser() -> argparse.ArgumentParser:
    """The parser of the command alone."""
    parser = argparse.ArgumentParser(
        prog="kserve-lmcache",
        usage="kserve-lmcache [COMMAND] [FLAG ...]",
        description="KServe predictor runtime: vLLM with KV-cache offloading by LMCache.",
        epilog="Without a COMMAND, all arguments are flags of serve. "
        "`kserve-lmcache COMMAND --help` lists the flags of a command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"kserve-lmcache {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND [FLAG ...]", title="commands")
    for name, line in COMMANDS.items():
        commands.add_parser(name, help=line, add_help=False)
    return parser


def _run(command: str, arguments: list[str]) -> int:
    """Run a command; its module is imported here, because some import vLLM, which takes seconds.

    Returns:
        The exit code.

    Raises:
        KServeLMCacheError: the command failed.
    """
    levels = logs.LibraryLevels(os.environ)
    if command == "serve":
        environment.ensure()
    imports_vllm = _imports_vllm(command, arguments)
    if command in _LIGHT:
        running.refuse_without_room(os.environ, imports_vllm)
    if imports_vllm or command not in _LIGHT:  # the others look for the directories of servers
        _choose_metrics_directory(command)
    if imports_vllm or command == "cache-server":
        levels.set(os.environ.get(logs.LEVEL_VARIABLE, ""))
    given = dict(os.environ)  # some libraries set variables when they are imported
    if command == "serve":
        logs.configure(os.environ)
        _refuse_too_little_memory()
        _look_for_model(arguments)
    if imports_vllm:
        import_without_flags()
    if command == "serve":
        from kserve_lmcache.cli import serve

        serve.run(arguments, levels, given)
        return 0
    if command == "demo-model":
        from kserve_lmcache.cli import demo_model

        demo_model.run(arguments)
        return 0
    if command == "cache":
        from kserve_lmcache.cli import cache

        print(cache.run(arguments))
        return 0
    if command == "cache-server":
        from kserve_lmcache.cli import cache_server

        return cache_server.run(arguments)
    if command == "bench":
        from kserve_lmcache.cli import bench

        importing.end()
        text, exit_code = bench.run(arguments)
    else:
        # vLLM and LMCache log to the standard output, which has the command's result alone.
        with contextlib.redirect_stdout(sys.stderr):
            if command == "config":
                from kserve_lmcache.cli import config

                text, exit_code = config.run(arguments), 0
            else:
                from kserve_lmcache.cli import doctor

                text, exit_code = doctor.run(arguments)
    print(text)
    return exit_code


def _refuse_too_little_memory() -> None:
    """Refuse a container in which not even the processes fit: the kernel would kill the import.

    Raises:
        UsageError: they do not fit.
    """
    has_gpu = Path("/proc/driver/nvidia/version").exists()
    needs = memory_budget.Needs("cuda" if has_gpu else "cpu")
    if problem := memory_budget.problem(memory_limit(), needs):
        raise UsageError(str(problem))


def _look_for_model(arguments: Sequence[str]) -> None:
    """Wait for the model's files, and find out at once that there are none.

    Importing vLLM takes many seconds. Only flags that name a model are looked at; a model that has
    a name on a hub, or an address, is none of a directory.

    Raises:
        UsageError: there is no model where one is expected.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--model_dir", "--model-dir", default=DEFAULT_MODEL_DIRECTORY)
    parser.add_argument("--model_id", "--model-id", "--model", default="")
    try:
        named, _ = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError:
        return  # the real parser says it better
    if not named.model_id or named.model_id.startswith("/"):
        arrival.await_model(Path(named.model_id or named.model_dir), os.environ)
