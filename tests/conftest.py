"""What holds for all tests."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """LMCache collects garbage for each of its engines: a second each, among vLLM's modules."""
    gc.collect()
    gc.freeze()
