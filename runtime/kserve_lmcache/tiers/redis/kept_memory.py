"""Memory of values that are read stays in the process, for the next values.

glibc maps memory for each buffer of some megabytes, and unmaps it when the buffer is freed. To map
a page takes as long as to fill it from a socket: 94 MB of chunks from a Redis on the same machine
take 76 ms, and 59 ms where memory is kept. Another allocator that is loaded in front of glibc's, as
in the image for CPUs, has limits of its own.
"""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_KEPT = 32 * 2**20  # bytes; glibc allows no more for what comes from the heap
_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_memory() -> None:
    """Let glibc keep up to 32 MiB for each thread that reads, unless its variables are set."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None and not any(name in os.environ for name in _VARIABLES):
        mallopt(_M_MMAP_THRESHOLD, _KEPT)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
