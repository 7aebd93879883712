"""Which log records are written, and how.

Records of this package are written from the level of the setting ``log_level`` on. vLLM, LMCache
and KServe write warnings and errors only, and everything when the level is ``debug``. A variable of
the library's own decides instead where it is set.

vLLM, LMCache, KServe and uvicorn each give their loggers handlers and formats of their own, some of
them late. With the format ``json`` every record goes through one handler of this module, and with
the format ``text`` those of LMCache do, which colors them for every stream otherwise.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import ClassVar

from kserve_lmcache.redaction import redact_logs

FORMAT_VARIABLE = "KSERVE_LMCACHE_LOG_FORMAT"
LEVEL_VARIABLE = "KSERVE_LMCACHE_LOG_LEVEL"
# The ID of the active request.
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")

# Whether the active request is a probe or a scrape.
IS_PROBE: ContextVar[bool] = ContextVar("is_probe", default=False)

_PACKAGE = "kserve_lmcache"
_FORMAT = "%(asctime)s %(levelname)s %(message)s"
_DATE_FORMAT = "%Y-%m-%d %H:%M:%S"
# The variable of each library that sets its level.
_VARIABLES = {
    "vllm": "VLLM_LOGGING_LEVEL",
    "lmcache": "LMCACHE_LOG_LEVEL",
    "kserve": "KSERVE_LOGLEVEL",
}
# A library whose variable is set configures its logging from a file.
_FILE_VARIABLES = {"vllm": "VLLM_LOGGING_CONFIG_PATH"}
_LIBRARY_LEVELS = {"debug": "DEBUG", "info": "WARNING", "warning": "WARNING", "error": "ERROR"}
_NO_BANNER = "LMCACHE_DISABLE_BANNER"
# Loggers of vLLM that warn in every process of what the server's process has said already, or that
# the interface of connectors is experimental.
_REPEATING = (
    "vllm.config",
    "vllm.platforms",
    "vllm.distributed.kv_transfer.kv_connector.v1.base",
    "vllm.utils.torch_utils",  # that OMP_NUM_THREADS is set, which this server does
)
_STDERR = 2


class LibraryLevels:
    """The levels of the libraries' loggers, in this process and in those that it starts.

    Args:
        environ: the environment of this process. A level that is set there stays.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._environ = environ
        self._unset = [name for name, variable in _VARIABLES.items() if not environ.get(variable)]
        self._banner_is_unset = _NO_BANNER not in environ

    def set(self, level: str, verbose: Iterable[str] = ()) -> None:
        """Set the levels that the environment did not.

        Args:
            level: the value of the setting ``log_level``.
            verbose: libraries whose INFO records a flag asks for.
        """
        for library in self._unset:
            wanted = _LIBRARY_LEVELS.get(level, "WARNING")
            if library in verbose and wanted == "WARNING":
                wanted = "INFO"
            self._environ[_VARIABLES[library]] = wanted
            if not self._environ.get(_FILE_VARIABLES.get(library, "")):
                _set_level(library, wanted)
        if self._banner_is_unset:
            self._environ[_NO_BANNER] = str(int(level != "debug"))


def _set_level(name: str, level: str) -> None:
    """Set the level of a logger, and of the loggers below it that have a level of their own."""
    for logger in _loggers(name):
        if logger.level:
            logger.setLevel(level)
        for handler in logger.handlers:
            if handler.level:
                handler.setLevel(level)


def _loggers(name: str) -> Iterator[logging.Logger]:
    """The logger of a package and those of its modules, as far as they exist."""
    for found, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and f"{found}.".startswith(f"{name}."):
            yield logger


def configure(environ: Mapping[str, str]) -> None:
    """Write this package's records, at the level and in the format that the variables say."""
    redact_logs()
    set_level(environ.get(LEVEL_VARIABLE, "info"))
    if environ.get(FORMAT_VARIABLE, "").strip().lower() == "json":
        use_json()
    elif not sys.stderr.isatty():
        _leave_out_colors()
    _ignore_warnings_of_libraries()


def leave_out_repetitions(environ: Mapping[str, str]) -> None:
    """In a process of the engine, leave out warnings of vLLM that say nothing new.

    vLLM's own level must be the one that ``log_level`` gives it by default.
    """
    if environ.get(_VARIABLES["vllm"]) == _LIBRARY_LEVELS["info"]:
        for name in _REPEATING:
            logging.getLogger(name).setLevel(logging.ERROR)


def set_level(level: str) -> None:
    """Write this package's records from a level on; an unknown level counts as ``info``."""
    ours = logging.getLogger(_PACKAGE)
    ours.setLevel(level.upper() if level in _LIBRARY_LEVELS else logging.INFO)
    ours.propagate = False
    if not ours.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(_FORMAT, _DATE_FORMAT))
        ours.addHandler(handler)


def configure_by_file(configure: Callable[[], None]) -> None:
    """Let a file configure the logging of KServe's server, and keep this package's records.

    They go where KServe's records go, unless the file names this package's logger: by default a
    file disables every logger that it does not name.

    Args:
        configure: reads the file.
    """
    ours, kserves = logging.getLogger(_PACKAGE), logging.getLogger("kserve")
    before = list(ours.handlers)
    configure()
    for logger in _loggers(_PACKAGE):
        logger.disabled = False
    if ours.handlers in (before, []) and kserves.handlers:
        ours.handlers = list(kserves.handlers)
        ours.setLevel(kserves.level)


def _ignore_warnings_of_libraries() -> None:
    """Leave out Python warnings on which an operator cannot act.

    Python's own options (``-W``, ``PYTHONWARNINGS``) come first.
    """
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category, append=True)
    # FastAPI's, about KServe's application and about the routes in /openapi.json.
    for message in ("ORJSONResponse is deprecated", "Duplicate Operation ID"):
        warnings.filterwarnings("ignore", message=message, append=True)


class JSONFormatter(logging.Formatter):
    """One line of JSON: ``time``, ``level``, ``logger``, ``message`` and ``process``.

    A record of a request has ``request_id`` as well, one of an exception ``exception``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
        }
        if request_id := REQUEST_ID.get():
            fields["request_id"] = request_id
        # Where secrets were taken out of the traceback, its text is there already.
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            fields["exception"] = record.exc_text
        return json.dumps(fields)


def use_json() -> None:
    """Write every record of this process as JSON from now on."""
    # A file of its own: vLLM prefixes what is written to sys.stderr with a process's name.
    stream = os.fdopen(os.dup(_STDERR), "w", buffering=1)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONFormatter())

    _write_by(handler, lambda _: True)
    logging.root.handlers = [handler]
    # A Python warning is a line of text otherwise.
    logging.captureWarnings(True)


def _leave_out_colors() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"{_FORMAT} (%(name)s:%(lineno)d)", _DATE_FORMAT))
    _write_by(handler, lambda name: name.partition(".")[0] == "lmcache")


def _write_by(handler: logging.Handler, applies: Callable[[str], bool]) -> None:
    """Write all records of some loggers by one handler, whatever handlers they get.

    Args:
        handler: of all of them.
        applies: whether the handler is for the logger of a name.
    """
    _OneHandler.handler, _OneHandler.applies = handler, applies
    logging.setLoggerClass(_OneHandler)
    for logger in logging.root.manager.loggerDict.values():
        # Also those that exist: vLLM gives its logger new handlers when an engine's process has
        # read its configuration, and LMCache whenever a module of its own asks for its logger.
        if type(logger) is logging.Logger:
            logger.__class__ = _OneHandler
        elif isinstance(logger, logging.Logger) and logger.handlers and applies(logger.name):
            logger.handlers = [handler]


class _OneHandler(logging.Logger):
    """Writes the records of some loggers by one handler, and leaves the others alone."""

    handler: ClassVar[logging.Handler] = logging.NullHandler()
    applies: ClassVar[Callable[[str], bool]] = lambda _: False

    def callHandlers(self, record: logging.LogRecord) -> None:
        if type(self).applies(self.name):
            self.handler.handle(record)
        else:
            super().callHandlers(record)
