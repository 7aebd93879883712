"""Keeps every exception of LMCache away from vLLM, whose engine would end with all requests."""

from __future__ import annotations

import functools
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from vllm.logger import init_logger

from kserve_lmcache.metrics.table import metric

logger = init_logger(__name__)

Call = TypeVar("Call", bound=Callable[..., Any])

_SECONDS_BETWEEN_LINES = 60.0


class ErrorContainment:
    """Counts exceptions, logs them, and keeps why LMCache does not work.

    The first exception of a kind is logged with its traceback, later ones in one line a minute.
    A kind is the call, the exception's type, and the line that raised the exception.

    Args:
        clock: gives seconds.

    Attributes:
        failure: why LMCache does not work in this process; empty while LMCache works.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.failure = ""
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._logged: dict[tuple[str, str, str], float] = {}

    def counts(self) -> dict[str, int]:
        """The number of exceptions by the name of the call."""
        with self._lock:
            totals: Counter[str] = Counter()
            for (call, _, _), count in self._counts.items():
                totals[call] += count
        return dict(totals)

    def give_up(self, call: str, error: Exception) -> None:
        """Record ``error`` as the reason why LMCache does not work in this process."""
        self.failure = f"{type(error).__name__}: {error}"
        self.record(call, error)

    def record(self, call: str, error: Exception) -> None:
        """Count ``error``. Log ``error`` unless the last minute's log has its kind."""
        metric("connector_exceptions_total", call=call).inc()
        kind = (call, type(error).__name__, _place(error))
        now = self._clock()
        with self._lock:
            self._counts[kind] += 1
            times, logged = self._counts[kind], self._logged.get(kind)
            if logged is not None and now - logged < _SECONDS_BETWEEN_LINES:
                return
            self._logged[kind] = now
        if logged is None:
            trace = "".join(traceback.format_exception(error))
            logger.error("LMCache failed in %s; requests go on without it:\n%s", call, trace)
        else:
            logger.error("LMCache failed in %s again (%d times): %r", call, times, error)


def _place(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


class Contained(Protocol):
    """An object whose methods may be decorated with :func:`contained`."""

    @property
    def containment(self) -> ErrorContainment:
        """Takes what its methods raise."""


def contained(fallback: Callable[..., Any]) -> Callable[[Call], Call]:
    """Make a method return ``fallback``'s result when the method raises.

    Once LMCache does not work in this process, the method is not called any more.

    Args:
        fallback: takes the method's arguments. Completes the work that the method left undone,
            and returns what vLLM continues with.
    """

    def decorate(method: Call) -> Call:
        @functools.wraps(method)
        def call(self: Contained, *args: Any, **kwargs: Any) -> Any:
            if not self.containment.failure:
                try:
                    return method(self, *args, **kwargs)
                except Exception as error:
                    self.containment.record(method.__name__, error)
            return fallback(self, *args, **kwargs)

        return call  # type: ignore[return-value]

    return decorate
