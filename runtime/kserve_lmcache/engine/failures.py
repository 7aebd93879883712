"""The cause of the engine's end, as the process that failed knows it.

vLLM tells the server only that a process ended ("Failed core proc(s): {}"). The cause is in the log
of the process, as a traceback. Every process of the engine therefore writes its errors to files of
the server as well, one sentence each, and its log has tracebacks at the level ``debug`` alone.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kserve_lmcache.config.metrics_directory import VARIABLE
from kserve_lmcache.logs import LEVEL_VARIABLE
from kserve_lmcache.redaction import redact_text

DIRECTORY = "_KSERVE_LMCACHE_FAILURES"

# Loggers of vLLM whose errors end the engine.
_LOGGERS = ("vllm.v1.engine.", "vllm.v1.executor.")
# vLLM's texts that name no cause.
_EMPTY = re.compile(r"See (root cause|stack trace)|Executor failed\.|Failed core proc")
_EXIT_CODE = re.compile(r"'([\w -]+)': (-?\d+)")
_MOST_REPORTS = 20  # of a process
# vLLM's text of a request to the engine, such as for an adapter, that failed and ended nothing.
_SURVIVED = "Invocation of %s method failed"
# Seconds before the last error in which the first error is the cause. An earlier one ended nothing.
_TOGETHER = 30.0
_LONGEST = 600  # characters of a cause

# What to do about a cause, by its text. The first row that fits decides.
_FIXES = (
    (
        r"No module named|cannot import name|packages? (is|are) required",
        "Install the package, or leave out the flag that needs it.",
    ),
    (
        r"No space left on device|/dev/shm|Bus error",
        "Mount a larger volume at the place that the message names, or at /dev/shm.",
    ),
    (
        r"cache blocks|KV cache memory|KV cache is needed|max_model_len|max seq len",
        "Lower --max-model-len, or raise --kv-cache-memory-bytes or the memory limit.",
    ),
    (
        r"exit code: -9|SIGKILL|died unexpectedly|[Oo]ut ?[Oo]f ?[Mm]emory|"
        r"allocate memory|bad_alloc",
        "If the memory ran out, raise the container's memory limit or lower --max-model-len.",
    ),
)
_DEFAULT_FIX = "--log-level=debug shows the traceback."


@dataclass(frozen=True)
class Failures:
    """The errors of the engine's processes, in a directory of the server."""

    directory: Path

    @classmethod
    def collect(cls, environ: MutableMapping[str, str]) -> Failures:
        """Make the directory, and name it to the processes that this one starts.

        Args:
            environ: the environment that they inherit.
        """
        # Beside the metrics, so that the next server removes it where this one is killed.
        directory = Path(tempfile.mkdtemp(prefix="failures-", dir=environ.get(VARIABLE)))
        atexit.register(_remove, directory, os.getpid())
        environ[DIRECTORY] = str(directory)
        return cls(directory)

    def cause(self, said: str = "", exit_codes: Mapping[str, int] | None = None) -> str:
        """The cause of the engine's end as one sentence, with its fix; empty when it is not known.

        Args:
            said: what vLLM says of the end in the server's process.
            exit_codes: of the engine's processes that have ended, by their names.
        """
        text = self._first() or ("" if _EMPTY.search(said) else one_line(said))
        if not text:
            # vLLM's text may have the exit codes.
            known = {name: int(code) for name, code in _EXIT_CODE.findall(said)}
            ended = {n: c for n, c in {**known, **(exit_codes or {})}.items() if c}
            text = ", ".join(f"{name} {_ending(code)}" for name, code in ended.items())
        return f"{text.rstrip('.')}. {fix_of(text)}" if text else ""

    def forget(self) -> None:
        """Forget errors that the engine survived, or those of an engine that another replaces."""
        for path in self.directory.glob("*.json"):
            path.unlink(missing_ok=True)

    def _first(self) -> str:
        found = []
        for path in self.directory.glob("*.json"):
            try:
                found.append(json.loads(path.read_text("utf-8")))
            except (OSError, ValueError):  # the process was killed while it wrote
                continue
        if not found:
            return ""
        last = max(each["time"] for each in found)
        recent = [each for each in found if last - each["time"] <= _TOGETHER]
        return str(min(recent, key=lambda each: each["time"])["text"])


# Where no process reports its errors.
NOBODY = Failures(Path("/nonexistent"))
NO_CAUSE = f"its processes ended without a reason. {_DEFAULT_FIX}"


def report_errors(environ: Mapping[str, str]) -> None:
    """Write vLLM's errors that end the engine to the server's files, and no traceback to the log.

    Args:
        environ: names the directory and the level of the log.
    """
    directory, debug = environ.get(DIRECTORY), environ.get(LEVEL_VARIABLE) == "debug"
    make, reported = logging.getLogRecordFactory(), 0

    def make_and_report(*args: Any, **kwargs: Any) -> logging.LogRecord:
        nonlocal reported
        record = make(*args, **kwargs)
        error = record.exc_info[1] if record.exc_info else None
        of_the_engine = record.name.startswith(_LOGGERS) and record.levelno >= logging.ERROR
        if not (of_the_engine or type(error).__name__ == "EngineDeadError"):
            return record
        cause = _text(error, record.exc_text) if error else one_line(record.getMessage())
        if directory and record.msg == _SURVIVED:
            Failures(Path(directory)).forget()  # those of the workers, too
        elif directory and of_the_engine and reported < _MOST_REPORTS and not _EMPTY.search(cause):
            _write(Path(directory), reported, cause)
            reported += 1
        if error is not None and not debug:
            record.msg, record.args = f"{record.getMessage()} {cause}", ()
            record.exc_info = record.exc_text = None
        return record

    logging.setLogRecordFactory(make_and_report)


def hide_tracebacks(environ: Mapping[str, str]) -> None:
    """Leave out the traceback that multiprocessing prints when this process ends by an exception.

    The exception was logged before.
    """
    if environ.get(LEVEL_VARIABLE) == "debug":
        return
    original = traceback.print_exc

    def print_others(*args: Any, **kwargs: Any) -> None:
        if sys._getframe(1).f_globals.get("__name__") != "multiprocessing.process":
            original(*args, **kwargs)

    traceback.print_exc = print_others


def fix_of(text: str) -> str:
    """What an operator can do about a cause."""
    return next((fix for pattern, fix in _FIXES if re.search(pattern, text)), _DEFAULT_FIX)


def one_line(text: str) -> str:
    """The text without line breaks, cut where it is too long for a sentence."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


def _text(error: BaseException, redacted: str | None) -> str:
    """An exception as one line without secrets.

    Args:
        error: the exception.
        redacted: its traceback without secrets, if there is one.
    """
    own = "".join(traceback.format_exception_only(error)).strip()
    if redacted is not None and own not in redacted:
        name = own.partition(":")[0]  # of the class; the text behind it has secrets
        _, found, rest = redacted.rpartition(f"\n{name}")
        own = f"{name}{rest}" if found else name
    return redact_text(one_line(own))


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _write(directory: Path, number: int, text: str) -> None:
    path = directory / f"{os.getpid()}-{number}.new"
    try:
        path.write_text(json.dumps({"time": time.time(), "text": text}), "utf-8")
        path.rename(path.with_suffix(".json"))
    except OSError:  # the server has ended, or runs on another machine
        return


def _remove(directory: Path, server: int) -> None:
    if os.getpid() == server:  # not in a process that was forked
        shutil.rmtree(directory, ignore_errors=True)
