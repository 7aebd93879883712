"""How often Python looks for garbage while vLLM is imported, in each process of a server."""

from __future__ import annotations

import subprocess
import sys

import pytest

USUAL = "(700, 10, 10)" if sys.version_info < (3, 13) else "(2000, 10, 0)"


def printed(code: str) -> str:
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_garbage_is_looked_for_as_usual_afterwards_and_not_among_modules() -> None:
    code = """
import gc
from kserve_lmcache.compat import importing
importing.begin()
assert gc.get_threshold()[0] > 100_000 and not gc.get_freeze_count()
importing.end()
assert gc.get_freeze_count() > 10_000
print(gc.get_threshold())
"""
    assert printed(code) == USUAL


def test_garbage_is_not_looked_for_at_the_end() -> None:
    code = """
import atexit, gc
from kserve_lmcache.compat import importing
atexit.register(lambda: print(gc.get_freeze_count() > 10_000))
importing.end()
gc.unfreeze()
"""
    assert printed(code) == "True"


@pytest.mark.parametrize("main", ["kserve_lmcache.cli.command", "bdb"])
def test_a_process_of_the_engine_begins_with_it(main: str) -> None:
    # multiprocessing imports the main module of the server before it imports anything of vLLM.
    code = f"""
import gc, multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
sys.modules["__main__"] = import_module("{main}")
with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
    print(pool.submit(gc.get_threshold).result())
"""
    is_ours = main.startswith("kserve_lmcache")
    assert printed(code) == ("(200000, 100, 1000)" if is_ours else USUAL)
