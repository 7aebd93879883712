"""The access log: one line a request, written by uvicorn, and none for probes that succeed."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Collection
from typing import Any

from kserve_lmcache.server.http.middleware import is_public

_STATUS_PAGE = "/offload"  # the page in a browser asks for it every few seconds
_UVICORN = "uvicorn"
_ACCESS = "uvicorn.access"
_TIMINGS = "kserve.trace"


def configure(args: Namespace, level: str) -> None:
    """Set the levels of uvicorn's loggers, and leave probes out of the access log.

    Args:
        args: the flags of the server, vLLM's and KServe's flags for the access log included.
        level: the value of the setting ``log_level``; ``debug`` leaves nothing out.
    """
    quiet = level != "debug"
    uvicorns = args.uvicorn_log_level or ("warning" if level == "info" else level)
    logging.getLogger(_UVICORN).setLevel(uvicorns.upper())
    logging.getLogger(f"{_UVICORN}.error").setLevel(uvicorns.upper())
    access = logging.getLogger(_ACCESS)
    if args.disable_uvicorn_access_log or level in ("warning", "error"):
        access.setLevel(logging.WARNING)
    endpoints = (args.disable_access_log_for_endpoints or "").split(",")
    access.addFilter(_Filter({path.strip() for path in endpoints}, probes=not quiet))
    if args.enable_latency_logging:
        logging.getLogger(_TIMINGS).setLevel(logging.INFO)


class _Filter(logging.Filter):
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
        is_probe = is_public(method, path) or path == _STATUS_PAGE
        return self._probes or not is_probe or int(status) >= 400
