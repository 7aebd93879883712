"""The access log: one line a request, written by uvicorn, and nothing for probes that succeed."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Collection
from typing import Any

from kserve.errors import ModelNotFound, ModelNotReady, ServerNotLive, ServerNotReady

from kserve_lmcache.logs import IS_PROBE
from kserve_lmcache.server.http.middleware import is_probe
from kserve_lmcache.server.http.root_routes import below_prefix

_UVICORN = "uvicorn"
_ACCESS = "uvicorn.access"
_TIMINGS = "kserve.trace"
# Loggers that write of every request: KServe's, and that of its --access_log_format.
_OTHERS = ("kserve", _TIMINGS, "access")
# What KServe writes with a traceback when a probe gets the answer that it asks for.
_ANSWERS = (ModelNotFound, ModelNotReady, ServerNotLive, ServerNotReady)


def configure(args: Namespace, level: str) -> None:
    """Set the levels of the loggers of KServe's own configuration.

    Args:
        args: the flags of the server, vLLM's and KServe's flags for the access log included.
        level: the value of the setting ``log_level``.
    """
    uvicorns = args.uvicorn_log_level or ("warning" if level == "info" else level)
    logging.getLogger(_UVICORN).setLevel(uvicorns.upper())
    logging.getLogger(f"{_UVICORN}.error").setLevel(uvicorns.upper())
    if args.disable_uvicorn_access_log or level in ("warning", "error"):
        logging.getLogger(_ACCESS).setLevel(logging.WARNING)
    if args.enable_latency_logging:
        logging.getLogger(_TIMINGS).setLevel(logging.INFO)


def leave_out_probes(args: Namespace, level: str) -> None:
    """Leave probes, scrapes and the endpoints of vLLM's flag out, whoever configures the loggers.

    Args:
        args: the flags of the server.
        level: the value of the setting ``log_level``; ``debug`` leaves no probe out.
    """
    quiet = level != "debug"
    endpoints = (args.disable_access_log_for_endpoints or "").split(",")
    access = _AccessFilter({path.strip() for path in endpoints}, probes=not quiet)
    logging.getLogger(_ACCESS).addFilter(access)
    for name in _OTHERS if quiet else ():
        logging.getLogger(name).addFilter(_is_no_probe)


def _is_no_probe(record: logging.LogRecord) -> bool:
    """Whether a record is of another request, or of an error in a probe that nobody expects."""
    error = record.exc_info[1] if record.exc_info else None
    expected = record.levelno < logging.WARNING or isinstance(error, _ANSWERS)
    return not (IS_PROBE.get() and expected)


class _AccessFilter(logging.Filter):
    """Leaves out records of uvicorn's access log.

    Args:
        paths: paths whose requests are left out.
        probes: whether probes and scrapes that succeed are written.
    """

    def __init__(self, paths: Collection[str], probes: bool) -> None:
        super().__init__()
        self._paths = paths
        self._probes = probes

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written."""
        # The arguments are: client, method, path with query, version of HTTP, status.
        arguments: Any = record.args
        _, method, target, _, status = arguments
        path = target.partition("?")[0]
        if path in self._paths:
            return False
        # As the client sent it: it may be one that is moved below the prefix.
        places = {path, below_prefix(path)}
        quiet = not self._probes and any(is_probe(method, place) for place in places)
        return not quiet or int(status) >= 400
