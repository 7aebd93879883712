"""One line of JSON for every record of every library, where that is asked for.

vLLM, LMCache, KServe and uvicorn each give their loggers handlers and formats of their own, some of
them late. Loggers that are made from now on write through one handler of ours; those that exist
get it in place of theirs.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import datetime, timezone

VARIABLE = "KSERVE_LMCACHE_LOG_FORMAT"
# Of the request that is being answered.
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
_STDERR = 2


class JSONFormatter(logging.Formatter):
    """``time``, ``level``, ``logger``, ``message``, ``process`` and what else there is."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        fields = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
        }
        if request_id := REQUEST_ID.get():
            fields["request_id"] = request_id
        # The text is there already where secrets were taken out of it.
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            fields["exception"] = record.exc_text
        return json.dumps(fields)


def use_json() -> None:
    """Write every record of this process as JSON, from now on."""
    # A file of its own: vLLM puts its processes' names in front of what is written to sys.stderr.
    stream = os.fdopen(os.dup(_STDERR), "w", buffering=1)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONFormatter())

    class OneHandler(logging.Logger):
        def callHandlers(self, record: logging.LogRecord) -> None:
            handler.handle(record)

    logging.setLoggerClass(OneHandler)
    logging.root.handlers = [handler]
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger) and logger.handlers:
            logger.handlers = [handler]


def follow(environ: Mapping[str, str]) -> None:
    """Do as the variable says."""
    if environ.get(VARIABLE, "").strip().lower() == "json":
        use_json()
