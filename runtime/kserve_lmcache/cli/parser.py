"""Argument parsers of the commands."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn, TypeVar

from kserve_lmcache.errors import UsageError

Number = TypeVar("Number", int, float)


class Parser(argparse.ArgumentParser):
    """A parser that raises ``UsageError`` in place of ending the process."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise UsageError(message)


def at_least(least: Number) -> Callable[[str], Number]:
    """A type of arguments: numbers of the type of ``least`` that are not less."""

    def number(text: str) -> Number:
        value = type(least)(text)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return value

    return number
