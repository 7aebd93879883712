"""Names of KServe that are private, and its parser, which must be imported with care (0.21).

Importing this module does not import KServe.
"""

from __future__ import annotations

import argparse
import copy
import sys
from typing import Any


def __getattr__(name: str) -> Any:
    """Import ``RefreshingServer``: uvicorn's server, which reloads changed certificates.

    Raises:
        AttributeError: another name is asked for.
    """
    if name != "RefreshingServer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kserve.protocol.rest.server import _RefreshingServer

    return _RefreshingServer


def argument_parser() -> argparse.ArgumentParser:
    """A copy of KServe's parser of the model server's flags.

    A parser that resolves conflicts takes flags away from the parsers that it is made of. KServe
    parses ``sys.argv`` while it is imported, and would guess at flags of other parsers.
    """
    argv, sys.argv = sys.argv, sys.argv[:1]
    try:
        from kserve.model_server import parser
    finally:
        sys.argv = argv
    return copy.deepcopy(parser)  # type: ignore[no-any-return]
