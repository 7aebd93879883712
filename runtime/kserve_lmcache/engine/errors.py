"""The exception for errors that the model's handlers return."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class RefusedError(Exception):
    """An error that a handler of vLLM or KServe returned."""

    status: int
    message: str
    kind: str = ""
    param: str | None = None
