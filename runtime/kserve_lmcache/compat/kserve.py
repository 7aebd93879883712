"""Names of KServe that are private, and its parser, which must be imported with care (0.21).

Importing this module does not import KServe.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import sys
from typing import Any


def import_without_flags() -> Any:
    """Import KServe's model server as if this process had no flags. Returns its module.

    KServe parses ``sys.argv`` while any of its modules is imported. It takes abbreviations of its
    flags for them (``--config`` for ``--configure_logging``), and ends the process with a usage of
    its own when a value is wrong. Call this before KServe is imported in another way.
    """
    argv, sys.argv = sys.argv, sys.argv[:1]
    try:
        return importlib.import_module("kserve.model_server")
    finally:
        sys.argv = argv


def argument_parser() -> argparse.ArgumentParser:
    """A copy of KServe's parser of the model server's flags.

    A parser that resolves conflicts takes flags away from the parsers that it is made of.
    """
    parser: argparse.ArgumentParser = copy.deepcopy(import_without_flags().parser)
    return parser


def use_arguments(args: argparse.Namespace) -> None:
    """Give KServe's model server the parsed flags: it reads some of them from its own module."""
    kserves = import_without_flags().args
    for name in vars(kserves):
        if hasattr(args, name):
            setattr(kserves, name, getattr(args, name))
