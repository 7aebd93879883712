"""Errors that the model's handlers return, as exceptions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class RefusedError(Exception):
    """An error that a handler of vLLM's or of KServe's returned."""

    status: int
    message: str
    kind: str = ""
    param: str | None = None
