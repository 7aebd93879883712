"""What holds for all tests: their options, their markers and their time limits."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import options

# Seconds after which a test fails; a module's fixtures count for its first test. A test that needs
# longer has a marker of its own.
TIME_LIMITS = {"unit": 300, "packaging": 300, "integration": 300, "e2e": 900, "matrix": 900}
TIME_LIMITS["cluster"] = 5400


def pytest_addoption(parser: pytest.Parser) -> None:
    options.register(parser)


def pytest_configure(config: pytest.Config) -> None:
    options.read(config)
    # A machine that is busy is no fault of a test.
    settings.register_profile("no deadline", deadline=None)
    settings.load_profile("no deadline")
    # KServe parses this process's arguments when it is imported; pytest's are no business of its.
    del sys.argv[1:]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("timeout") is None:
            folder = item.path.relative_to(Path(__file__).parent).parts[0]
            item.add_marker(pytest.mark.timeout(TIME_LIMITS[folder]))


def pytest_collection_finish() -> None:
    """LMCache collects garbage for each of its engines: a second each, among vLLM's modules."""
    gc.collect()
    gc.freeze()
