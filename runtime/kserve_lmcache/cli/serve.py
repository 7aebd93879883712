"""``kserve-lmcache serve``: parse, resolve, run."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence

from kserve.logging import configure_logging, logger

from kserve_lmcache import logs
from kserve_lmcache.cli.arguments import parse_arguments
from kserve_lmcache.doctor import at_start
from kserve_lmcache.engine.arguments import resolve_engine_arguments
from kserve_lmcache.engine.plan import plan_offload, resolve_configuration
from kserve_lmcache.metrics import start_up_timing
from kserve_lmcache.server.model_server import serve
from kserve_lmcache.server.start_up_responder import listen


def run(argv: Sequence[str]) -> None:
    """Serve until a signal ends it.

    Raises:
        KServeLMCacheError: it cannot serve as asked.
    """
    start_up_timing.reached(start_up_timing.IMPORTED)
    args = parse_arguments(argv)
    if args.configure_logging:
        configure_logging(args.log_config_file)
    _choose_log_format(args)
    resolve_engine_arguments(args, os.environ)
    with listen(args) as responder:
        offload, engine_config = plan_offload(args, os.environ)
        start_up_timing.reached(start_up_timing.PLANNED)
        if (subject := at_start.subject_of(args, offload)) is not None:
            at_start.log_findings(subject, logger)
        serve(args, offload, engine_config, responder)


def _choose_log_format(args: Namespace) -> None:
    """As a flag or the file says; of the variable, the first line knew already."""
    wanted = resolve_configuration(args, os.environ).get("log_format")
    if wanted == "json" and os.environ.get(logs.VARIABLE) != wanted:
        os.environ[logs.VARIABLE] = wanted  # the engine's processes read it
        logs.use_json()
