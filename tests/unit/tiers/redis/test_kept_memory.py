"""glibc's own figures, of a process that reads a value of 8 MiB."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kserve_lmcache.tiers.redis.kept_memory import _VARIABLES

READ = """
import ctypes
from kserve_lmcache.tiers.redis.kept_memory import keep_memory
keep_memory()
class Figures(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "abcdefghij"]
mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Figures
before = mallinfo().e  # bytes that are mapped for single buffers
value = bytes(8 * 2**20)
print(mallinfo().e - before)
"""


@pytest.mark.parametrize(
    ("variables", "mapped"),
    [
        ({}, False),
        ({"MALLOC_MMAP_THRESHOLD_": "131072"}, True),
        ({"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}, True),
    ],
    ids=["kept", "variable", "tunable"],
)
def test_a_value_gets_memory_that_is_kept(variables: dict[str, str], mapped: bool) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in _VARIABLES}
    command = [sys.executable, "-c", READ]
    answer = subprocess.run(command, env={**kept, **variables}, capture_output=True, check=True)
    assert (int(answer.stdout) >= 8 * 2**20) == mapped
