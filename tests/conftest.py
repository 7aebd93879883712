"""What holds for all tests: their options, their markers and their time limits."""

from __future__ import annotations

import functools
import gc
import sys
from pathlib import Path
from typing import Any

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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if (selected := options.option("--alone")) != "with-others":
        items[:] = [
            each
            for each in items
            if (each.get_closest_marker("alone") is not None) == (selected == "only")
        ]
    for item in items:
        path = item.path.relative_to(Path(__file__).parent)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIME_LIMITS[path.parts[0]]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One process runs all tests of a file, and of files that share what takes long to start."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return _group(config.rootpath / nodeid.partition("::")[0])

    return Scheduling(config, log)


@functools.cache
def _group(file: Path) -> str:
    text = file.read_text()
    for shared in ("mark.container", "mark.cluster", "reference: Server"):
        if shared in text:
            return shared
    return str(file.parent if file.parent.name == "clients" else file)


def pytest_collection_finish() -> None:
    """LMCache collects garbage for each of its engines: a second each, among vLLM's modules."""
    gc.collect()
    gc.freeze()
