"""Nothing that LMCache raises reaches vLLM: it would end the engine, and every request with it."""

from __future__ import annotations

import functools
import inspect
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from vllm.logger import init_logger

from kserve_lmcache.metrics.table import metric

logger = init_logger(__name__)

Call = TypeVar("Call", bound=Callable[..., Any])

_SECONDS_BETWEEN_LINES = 60.0


class Faults:
    """Counts exceptions and logs them: the first of a kind with its trace, later ones in a line.

    A kind is the call, the exception's type, and the line that raised it.

    Args:
        clock: seconds; each kind gets a line a minute at most.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._kinds: Counter[tuple[str, str, str]] = Counter()
        self._logged: dict[tuple[str, str, str], float] = {}

    def counts(self) -> dict[str, int]:
        """How many exceptions each call met, by the call's name."""
        return dict(self._counts)

    def record(self, call: str, error: Exception) -> None:
        """Count ``error``, and log it where that does not repeat what was just logged."""
        metric("connector_exceptions_total", call=call).inc()
        kind = (call, type(error).__name__, _place(error))
        now = self._clock()
        with self._lock:
            self._counts[call] += 1
            self._kinds[kind] += 1
            times, logged = self._kinds[kind], self._logged.get(kind)
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


def contained(answer: Callable[..., Any]) -> Callable[[Call], Call]:
    """Make a method of the connector answer whatever happens in it.

    Args:
        answer: takes the method's arguments, makes good what it left undone, and gives what vLLM
            goes on with; asked as well when LMCache did not even start in this process.
    """

    def decorate(method: Call) -> Call:
        @functools.wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not self.failure:
                try:
                    return method(self, *args, **kwargs)
                except Exception as error:
                    self.faults.record(method.__name__, error)
            return answer(self, *args, **kwargs)

        return call  # type: ignore[return-value]

    return decorate


def contain_inherited(answers: Mapping[str, Any]) -> Callable[[type], type]:
    """Contain what a class inherits: methods, class methods and properties.

    Args:
        answers: what vLLM goes on with, by name; names that this vLLM does not have are passed
            over.
    """

    def decorate(cls: type) -> type:
        for name, answer in answers.items():
            inherited = inspect.getattr_static(cls, name, None)
            if isinstance(inherited, property):
                setattr(cls, name, property(_forward(cls, name, answer, call=False)))
            elif isinstance(inherited, classmethod):
                setattr(cls, name, classmethod(_forward(cls, name, answer)))
            elif inherited is not None:
                method = contained(lambda *_, answer=answer, **__: answer)
                setattr(cls, name, method(_forward(cls, name, answer)))
        return cls

    return decorate


def _forward(cls: type, name: str, answer: Any, call: bool = True) -> Callable[..., Any]:
    """What ``cls`` inherits as ``name``, for an instance or the class itself; called or not."""

    def forward(own: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            inherited = getattr(super(cls, own), name)
            return inherited(*args, **kwargs) if call else inherited
        except Exception as error:
            own.faults.record(name, error)
            return answer

    forward.__name__ = name
    return forward
