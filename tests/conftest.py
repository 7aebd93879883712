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


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if (selected := options.option("--alone")) != "with-others":
        items[:] = [
            each
            for each in items
            if (each.get_closest_marker("alone") is not None) == (selected == "only")
        ]
    grouped = config.getoption("dist", "no") == "loadgroup"
    for item in items:
        path = item.path.relative_to(Path(__file__).parent)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIME_LIMITS[path.parts[0]]))
        if grouped:
            item.add_marker(pytest.mark.xdist_group(_group(item, path)))


def _group(item: pytest.Item, path: Path) -> str:
    """The tests that one process runs where several do: what they share is started once."""
    for name in ("container", "cluster"):
        if item.get_closest_marker(name):
            return name
    if "reference" in getattr(item, "fixturenames", ()):
        return "reference"
    return str(path.parent if path.parent.name == "clients" else path)


def pytest_collection_finish() -> None:
    """LMCache collects garbage for each of its engines: a second each, among vLLM's modules."""
    gc.collect()
    gc.freeze()
