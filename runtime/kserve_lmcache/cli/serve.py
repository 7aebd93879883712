"""``kserve-lmcache serve``: parse the flags, resolve the configuration, run the server."""

from __future__ import annotations

import atexit
import logging
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from kserve.logging import KSERVE_LOG_CONFIG, configure_logging

from kserve_lmcache import __version__, logs
from kserve_lmcache.cli.arguments import parse_arguments
from kserve_lmcache.compat import importing
from kserve_lmcache.compat.kserve import use_arguments
from kserve_lmcache.compat.vllm import configure_logging as configure_vllms_logging
from kserve_lmcache.config import directories, metrics_directory, server_file
from kserve_lmcache.config.configuration import Configuration
from kserve_lmcache.config.server_file import RunningServer
from kserve_lmcache.doctor import at_start
from kserve_lmcache.engine.arguments import compiles, resolve_engine_arguments
from kserve_lmcache.engine.compiled_code import Keeper
from kserve_lmcache.engine.plan import OffloadPlan, plan_offload, resolve_configuration
from kserve_lmcache.engine.validation import check_arguments
from kserve_lmcache.metrics import start_up_timing
from kserve_lmcache.redaction import redact_text
from kserve_lmcache.server.http import access_log
from kserve_lmcache.server.model_server import serve
from kserve_lmcache.server.start_up_responder import listen

logger = logging.getLogger(__name__)


def run(argv: Sequence[str], levels: logs.LibraryLevels, given: Mapping[str, str]) -> None:
    """Serve until a signal ends the server.

    Args:
        argv: the flags.
        levels: the levels of the libraries' loggers.
        given: the environment before any library was imported.

    Raises:
        KServeLMCacheError: the flags or the configuration cannot be served.
    """
    start_up_timing.reached(start_up_timing.IMPORTED)
    importing.end()
    args = parse_arguments(argv)
    use_arguments(args)
    check_arguments(args, os.environ)
    configuration = resolve_configuration(args, os.environ)
    _configure_logging(args, configuration, levels)
    resolve_engine_arguments(args, os.environ)
    keeper = _keeper(args, configuration, given)
    directories.check(directories.of_server(os.environ, compiles(args)))
    with listen(args) as responder:
        offload, engine_config = plan_offload(args, configuration, os.environ)
        start_up_timing.reached(start_up_timing.PLANNED)
        if (context := at_start.context_at_start(args, offload)) is not None:
            at_start.log_findings(context, logger)
        _tell_other_commands(args, offload)
        serve(args, offload, engine_config, responder, os.environ, keeper)


def _keeper(
    args: Namespace, configuration: Configuration, given: Mapping[str, str]
) -> Keeper | None:
    """Lets the engine compile into a directory that is kept, where the configuration names one."""
    directory = configuration.get("compile_cache_dir")
    if not directory:
        return None
    model = f"{args.model}@{args.revision or ''}"
    try:
        keeper = Keeper(Path(directory), model, args.model_name)
        keeper.redirect(os.environ, given)
    except OSError as error:
        logger.warning("Compiled code is not kept: %s", error)
        return None
    atexit.register(keeper.close)
    return keeper


def _tell_other_commands(args: Namespace, offload: OffloadPlan) -> None:
    """Leave the configuration in force to ``config`` and ``doctor`` beside the server."""
    directory = os.environ.get(metrics_directory.VARIABLE)
    if not directory:
        return
    shown = offload.configuration.shown()
    if offload.reason:
        reason = " ".join(redact_text(offload.reason).split())
        shown = replace(shown, notes=[*shown.notes, f"The KV cache is not offloaded: {reason}"])
    server = RunningServer(os.getpid(), args.http_port, __version__, shown, offload.shape)
    try:
        server_file.write(Path(directory), server)
    except OSError as error:
        logger.warning("config and doctor will not find this server: %s", error)


def _configure_logging(
    args: Namespace, configuration: Configuration, levels: logs.LibraryLevels
) -> None:
    """Configure the logging of this process, and name level and format to the engine's processes.

    Until here, level and format are those of the variables; now flags and file are known as well.
    """
    level, format_ = configuration.get("log_level"), configuration.get("log_format")
    os.environ[logs.LEVEL_VARIABLE], os.environ[logs.FORMAT_VARIABLE] = level, format_
    verbose = ["vllm"] if args.enable_log_requests and not args.disable_log_requests else []
    logs.set_level(level)
    levels.set(level, verbose)
    configure_vllms_logging(args)
    if args.configure_logging and args.kserve_log_config_file:
        logs.configure_by_file(lambda: configure_logging(args.kserve_log_config_file))
    elif args.configure_logging:
        configure_logging(KSERVE_LOG_CONFIG)
        levels.set(level, verbose)  # KServe's configuration has the level of KServe's import
        access_log.configure(args, level)
    access_log.leave_out_probes(args, level)
    if format_ == "json":
        logs.use_json()
